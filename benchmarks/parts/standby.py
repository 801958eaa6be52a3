"""`ctr run --rm` of `true` with a VM in standby each time.

A part of its own, because while a pool runs every start takes a VM from it. Each run waits until the next VM is ready
and the pool is idle, as on a node that does not start containers back to back.
"""

from __future__ import annotations

import time
from functools import partial

from benchmarks.figures import alternate
from benchmarks.stage import Stage
from tests.support.pool import pool, wait_ready

_SETTLE_S = 0.5


def measure(stage: Stage) -> None:
    if "kata" not in stage.contenders:
        return

    def from_standby() -> float:
        wait_ready()
        time.sleep(_SETTLE_S)
        return stage.run_true(stage.contenders["kata"])

    others = {name: partial(stage.run_true, stage.contenders[name]) for name in stage.contenders if name != "kata"}
    with pool():
        stage.record("ctr run --rm, from standby", "s", alternate(stage.runs, {"kata": from_standby, **others}))
