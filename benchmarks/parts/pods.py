"""How fast pods start, through containerd's CRI plugin and on the network of a real CNI plugin."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks.figures import alternate
from benchmarks.stage import Stage
from tests.support.cni import Bridge
from tests.support.containerd import unique_id
from tests.support.cri import Cri, pod_containerd
from tests.support.images import BUSYBOX

_COUNT = 10
#: A round of ten pods takes long, and varies little because it has many starts.
_MAX_ROUNDS = 3


def measure(stage: Stage) -> None:
    with _pods(stage) as connections:
        one = {name: partial(_start, cri, 1) for name, cri in connections.items()}
        stage.record("RunPodSandbox to a running container", "s", alternate(stage.runs, one), 1)
        if stage.sandboxes >= _COUNT:
            many = {name: partial(_start, cri, _COUNT) for name, cri in connections.items()}
            rounds = min(stage.runs, _MAX_ROUNDS)
            stage.record("RunPodSandbox to a running container", "s", alternate(rounds, many, warm_up=False), _COUNT)


@contextmanager
def _pods(stage: Stage) -> Iterator[dict[str, Cri]]:
    """A connection to a CRI plugin for each contender, by its runtime handler."""
    directory = stage.directory / "pods"
    directory.mkdir()
    with ExitStack() as stack:
        bridge = stack.enter_context(Bridge("katabench0", directory))
        containerd = stack.enter_context(pod_containerd(bridge, directory))
        connections = {}
        for name in stage.contenders:
            logs = directory / name
            logs.mkdir()
            connections[name] = stack.enter_context(Cri(containerd.address, name, BUSYBOX, logs))
        yield connections


def _start(cri: Cri, count: int) -> float:
    """Return the seconds until a container runs in each of `count` pods."""
    with ExitStack() as stack:

        def start(name: str) -> None:
            stack.enter_context(cri.pod(name)).run()

        with ThreadPoolExecutor(count) as pool:
            begin = time.perf_counter()
            list(pool.map(start, [unique_id("bench") for _ in range(count)]))
            return time.perf_counter() - begin
