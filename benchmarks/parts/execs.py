"""`ctr task exec` of `true`."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from benchmarks.figures import alternate, timed
from benchmarks.stage import Stage


def measure(stage: Stage) -> None:
    def one(container: str) -> float:
        return timed(lambda: stage.containerd.ctr("task", "exec", "--exec-id", "e", container, "true"))

    with ExitStack() as stack:
        containers = {name: stack.enter_context(stage.running(name)) for name in stage.contenders}
        actions = {name: partial(one, container) for name, container in containers.items()}
        stage.record("ctr task exec", "s", alternate(stage.runs * 2, actions))
