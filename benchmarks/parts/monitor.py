"""A scrape of kata-monitor, and its memory: sandboxes that only answer, one that does not, and one that is dead."""

from __future__ import annotations

import time

from benchmarks.figures import timed
from benchmarks.fleet import fleet
from benchmarks.processes import rss_mib
from benchmarks.stage import Stage
from kata.errors import Internal
from tests.support.monitor import kata_monitor
from tests.support.waiting import eventually

_SANDBOXES = 100
#: Seconds for what a scrape has taken to be given back.
_SETTLE_S = 1.0


def measure(stage: Stage) -> None:
    directory = stage.directory / "fleet"
    directory.mkdir()
    with fleet(directory, _SANDBOXES), kata_monitor(stage.directory, state_root=directory) as monitor:
        eventually(lambda: monitor.get("/sandboxes").count("\n"), "all are found", lambda found: found == _SANDBOXES)
        answered = monitor.get("/metrics").count("\nkata_shim_threads{")
        if answered != _SANDBOXES - 2:
            raise Internal(f"{answered} of {_SANDBOXES} sandboxes are in the answer")
        times = tuple(timed(lambda: monitor.get("/metrics")) for _ in range(stage.runs))
        time.sleep(_SETTLE_S)
        memory = (rss_mib(monitor.pid),)
    stage.record("scrape", "s", {"kata": times}, _SANDBOXES)
    stage.record("kata-monitor, RSS", "MiB", {"kata": memory}, _SANDBOXES)
