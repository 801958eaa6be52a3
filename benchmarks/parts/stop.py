"""The end of a running container: kill, wait, remove.

`ctr` has no command that waits, but a `ctr run --rm` in the foreground waits without polling, and then removes task and
container. The time is from the start of `ctr task kill` to the end of `ctr run`.
"""

from __future__ import annotations

import signal
import subprocess
import time
from functools import partial

from benchmarks.figures import alternate
from benchmarks.stage import Stage
from kata.errors import DeadlineExceeded, Internal
from tests.support.containerd import unique_id

_START_S = 60.0
_END_S = 60.0
#: After a start, so that it is over when the clock starts.
_SETTLE_S = 0.5


def measure(stage: Stage) -> None:
    actions = {name: partial(_one, stage, options) for name, options in stage.contenders.items()}
    stage.record("kill, wait, remove", "s", alternate(stage.runs, actions))


def _one(stage: Stage, options: tuple[str, ...]) -> float:
    container = unique_id("bench")
    waiter = subprocess.Popen(
        stage.command(options, container, "sleep", "600", flags=("--rm",)),
        env=stage.containerd.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _wait_for(stage, container, waiter)
        time.sleep(_SETTLE_S)
        begin = time.perf_counter()
        stage.containerd.ctr("task", "kill", "-s", "KILL", container)
        _, said = waiter.communicate(timeout=_END_S)
        seconds = time.perf_counter() - begin
        if waiter.returncode != 128 + signal.SIGKILL:
            raise Internal(f"a killed container ended with status {waiter.returncode}: {said.decode()[-500:]}")
        return seconds
    finally:
        if waiter.poll() is None:
            waiter.kill()
            waiter.wait()
            stage.remove(container)


def _wait_for(stage: Stage, container: str, waiter: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while waiter.poll() is None:
        for line in stage.containerd.ctr("task", "ls").stdout.splitlines():
            if line.split()[0] == container and line.split()[-1] == "RUNNING":
                return
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"container {container} is not running after {_START_S:.0f} s")
        time.sleep(0.05)
    raise Internal(f"container {container} ended before it was killed: {waiter.communicate()[1].decode()[-500:]}")
