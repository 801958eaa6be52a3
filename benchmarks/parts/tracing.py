"""What tracing costs: a container's run, and the memory of shim and agent, with tracing off and on."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.figures import alternate, turns
from benchmarks.processes import rss_mib
from benchmarks.stage import Stage
from kata.errors import Internal
from kata.management.client import request
from tests.support.containerd import unique_id
from tests.support.waiting import eventually

_ON = "[runtime]\nenable_tracing = true\n[agent.kata]\nenable_tracing = true\n"
_SETTLE_S = 2.0
_FORWARDER = str(Path(sys.executable).with_name("kata-trace-forwarder"))
#: Where shims look for the forwarder.
_SOCKET = Path("/run/kata-trace-forwarder_10240")
#: In KiB.
_AGENT_RSS = re.compile(r'^kata_agent_proc_status\{item="vmrss"\} ([0-9.e+]+)$', re.MULTILINE)


def measure(stage: Stage) -> None:
    kata = stage.contenders["kata"]
    options = {"kata": stage.configured(kata, "plain", ""), "kata, traced": stage.configured(kata, "traced", _ON)}
    with _forwarder():
        runs = {name: partial(stage.run_true, one) for name, one in options.items()}
        stage.record("ctr run --rm", "s", alternate(stage.runs, runs))
        shim: dict[str, list[float]] = {name: [] for name in options}
        agent: dict[str, list[float]] = {name: [] for name in options}
        for _, name in turns(min(stage.runs, 3), options):
            of_shim, of_agent = _resident(stage, options[name])
            shim[name].append(of_shim)
            agent[name].append(of_agent)
    for what, sizes in (("shim with container, RSS", shim), ("agent, RSS", agent)):
        stage.record(what, "MiB", {name: tuple(values) for name, values in sizes.items()})


def _resident(stage: Stage, options: tuple[str, ...]) -> tuple[float, float]:
    """The resident memory of shim and agent of one running container, in MiB."""
    container = unique_id("bench")
    try:
        stage.containerd.ctr("run", "-d", *options, stage.image, container, "sleep", "86400")
        time.sleep(_SETTLE_S)
        (pid,) = [pid for pid, sandbox in stage.containerd.shims().items() if sandbox == container]
        of_shim = rss_mib(pid)  # before it is asked: HTTP is loaded for that
        text = asyncio.run(request(stage.containerd.state(container), "GET", "/metrics", timeout=30)).decode()
        found = _AGENT_RSS.search(text)
        if found is None:
            raise Internal("the agent does not tell its memory")
        return of_shim, float(found[1]) / 1024
    finally:
        stage.remove(container)


@contextmanager
def _forwarder() -> Iterator[None]:
    """Somebody who takes the spans, and throws them away."""
    with subprocess.Popen(
        ["setpriv", "--pdeathsig=SIGKILL", "--", _FORWARDER, "--dump-only"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            eventually(_SOCKET.exists, "the forwarder listens")
            yield
        finally:
            process.terminate()
