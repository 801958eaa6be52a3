"""Memory of idle sandboxes, for several numbers of them, as they share more the more there are."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

from benchmarks.bare import bare_vm, default_plan, template_of
from benchmarks.processes import processes, pss_by_kind, pss_mib
from benchmarks.stage import Stage
from tests.support.containerd import unique_id

_COUNTS = (1, 5, 20, 50, 100)
_BARE_COUNTS = (1, 5)
#: Until a new sandbox is idle.
_SETTLE_S = 3.0
_TOTAL = "idle sandbox"


def measure(stage: Stage) -> None:
    for name in stage.contenders:
        sandboxes(stage, name)
    _bare(stage)


def sandboxes(stage: Stage, contender: str) -> None:
    """Measure more and more sandboxes of a contender."""
    containers: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # a hundred starts take minutes
        try:
            for count in _COUNTS:
                if count > stage.sandboxes:
                    break
                new = [unique_id("bench") for _ in range(count - len(containers))]
                containers += new  # known before they exist, so that all are removed
                list(pool.map(partial(stage.launch, contender), new))
                time.sleep(_SETTLE_S)
                _record(stage, contender, containers)
        finally:
            list(pool.map(stage.remove, containers))


def _record(stage: Stage, contender: str, containers: list[str]) -> None:
    """Record each sandbox as a whole, then by kind of process."""
    pids = processes(stage.containerd.shims())
    each = [pss_by_kind(pids[container]) for container in containers]
    stage.record(_TOTAL, "MiB", {contender: tuple(sum(kinds.values()) for kinds in each)}, len(containers))
    for kind in sorted({kind for kinds in each for kind in kinds}):
        values = tuple(kinds.get(kind, 0.0) for kinds in each)
        stage.record(f"{_TOTAL}: {kind}", "MiB", {contender: values}, len(containers))


def _bare(stage: Stage) -> None:
    """QEMU alone, restored from the same template."""
    plan = default_plan(stage.directory)
    with template_of(plan) as saved, ExitStack() as stack:
        pids: list[int] = []
        for count in _BARE_COUNTS:
            if count > stage.sandboxes:
                break
            while len(pids) < count:
                pids.append(stack.enter_context(bare_vm(plan, saved))[0])
            time.sleep(_SETTLE_S)
            values = tuple(pss_mib(pid) for pid in pids)
            stage.record(_TOTAL, "MiB", {"bare qemu": values}, count)
            stage.record(f"{_TOTAL}: qemu", "MiB", {"bare qemu": values}, count)
