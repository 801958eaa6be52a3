"""The shim's executable, run as containerd runs it, and the memory of a shim that serves a container."""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import AsyncExitStack

from benchmarks.figures import timed, turns
from benchmarks.processes import rss_mib
from benchmarks.stage import Stage
from kata.errors import Internal, NotFound
from kata.shim.launcher import NAME
from tests.support.rawshim import RawShim

#: The executables of other contenders' shims.
_OTHERS = {"runc": "containerd-shim-runc-v2"}
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
#: A shim starts in a twentieth of a second, so many runs cost little.
_MIN_RUNS = 15
_SETTLE_S = 2.0


def measure(stage: Stage) -> None:
    asyncio.run(_processes(stage, [name for name in stage.contenders if name == "kata" or name in _OTHERS]))
    _resident(stage)


async def _processes(stage: Stage, names: list[str]) -> None:
    """Measure `start` and `delete` as whole processes; `delete` finds what a killed shim has left behind."""
    runs = max(_MIN_RUNS, 3 * stage.runs)
    start: dict[str, list[float]] = {name: [] for name in names}
    delete: dict[str, list[float]] = {name: [] for name in names}
    async with AsyncExitStack() as stack:
        shims = {name: await stack.enter_async_context(_shim(name)) for name in names}
        for run, name in turns(runs + 1, names):
            started, deleted = _once(shims[name])
            if run > 0:  # the first one fills caches
                start[name].append(1000 * started)
                delete[name].append(1000 * deleted)
    for action, measured in (("start", start), ("delete", delete)):
        values = {name: tuple(times) for name, times in measured.items()}
        stage.record(f"shim {action}", "ms", values)


def _shim(contender: str) -> RawShim:
    """Return bundles for a contender's shim, which replaces the launcher unless it is this project's."""
    shim = RawShim("bench", _ENVIRONMENT)
    if contender in _OTHERS:
        executable = shutil.which(_OTHERS[contender])
        if executable is None:
            raise NotFound(f"{_OTHERS[contender]} is not installed")
        launcher = shim.directory / "bin" / NAME
        launcher.unlink()
        launcher.symlink_to(executable)
    return shim


def _once(shim: RawShim) -> tuple[float, float]:
    container = shim.bundle("true")
    # runc's shim writes this file in Create, and its `delete` needs it; empty means the default runtime.
    (shim.path(container) / "runtime").touch()
    started = timed(lambda: shim.start(container))
    shim.kill(container)

    def delete() -> None:
        done = shim.binary(container, "delete")
        if done.returncode != 0:
            raise Internal(f"delete: status {done.returncode}: {(done.stdout + done.stderr)[-500:]!r}")

    return started, timed(delete)


def _resident(stage: Stage) -> None:
    """Measure the resident memory of shims with a running container."""
    measured: dict[str, list[float]] = {name: [] for name in stage.contenders}
    for _, name in turns(min(stage.runs, 3), stage.contenders):
        with stage.running(name) as container:
            time.sleep(_SETTLE_S)
            pids = [pid for pid, sandbox in stage.containerd.shims().items() if sandbox == container]
            measured[name].append(sum(rss_mib(pid) for pid in pids))
    values = {name: tuple(sizes) for name, sizes in measured.items()}
    stage.record("shim with container, RSS", "MiB", values)
