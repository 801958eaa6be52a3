"""All sandboxes' metrics as one answer: asked at the same time, each with a deadline, each owned by its labels."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from kata.errors import KataError
from kata.loop.off import off_loop
from kata.management.client import request
from kata.metrics.durations import Durations
from kata.metrics.exposition import Family, read, write
from kata.metrics.procfs import own_process
from kata.metrics.table import GUEST, MONITOR, SANDBOX, kinds
from kata.monitor.sandboxes import Sandbox, owners

log = logging.getLogger(__name__)

#: Seconds for one sandbox, so that all together take less than two.
TIMEOUT_S = 1.5
#: Seconds of them that a sandbox needs for itself.
_OWN_S = 0.5
#: Bytes and samples of a sandbox's answer; a real one has about 60 KiB and 700.
_MAX_ANSWER = 1 << 20
_MAX_SAMPLES = 6000
#: Bytes of the answer.
_MAX_TOTAL = 128 << 20

_KNOWN = kinds({**SANDBOX, **GUEST})


class Counters:
    """What kata-monitor counts of itself."""

    def __init__(self) -> None:
        self.scrapes = 0
        self.failed = 0
        self.dropped = 0
        self.durations = Durations()

    def families(self, running: int) -> Iterator[Family]:
        """The same as metrics. Raises OSError: /proc cannot be read."""
        values = {
            "kata_monitor_running_shim_count": running,
            "kata_monitor_scrape_count": self.scrapes,
            "kata_monitor_scrape_failed_count": self.failed,
            "kata_monitor_dropped_samples_total": self.dropped,
            **{f"kata_monitor_process_{name}": value for name, value in own_process().items()},
        }
        for name, metric in MONITOR.items():
            family = Family(name, metric.kind, metric.text)
            if name in values:
                family.add(values[name])
            else:
                self.durations.fill(family)
            yield family


class Scraper:
    """Answers scrapes; those that come while one is under way get the same answer.

    Args:
        sandboxes: all, by name.
        timeout: seconds for one sandbox.
    """

    def __init__(self, sandboxes: Mapping[str, Sandbox], timeout: float = TIMEOUT_S) -> None:
        self._sandboxes = sandboxes
        self._timeout = timeout
        self._counters = Counters()
        self._under_way: asyncio.Task[bytes] | None = None
        #: Of the scrape that is under way.
        self._bytes_left = 0

    async def text(self) -> bytes:
        """All metrics, with those of kata-monitor first."""
        self._counters.scrapes += 1
        if self._under_way is None:
            self._under_way = asyncio.create_task(self._scrape(), name="scrape")
            self._under_way.add_done_callback(self._forget)
        # One client that leaves does not take the answer from the others.
        return await asyncio.shield(self._under_way)

    def _forget(self, _: object) -> None:
        self._under_way = None

    async def _scrape(self) -> bytes:
        self._bytes_left = _MAX_TOTAL
        sandboxes = dict(self._sandboxes)
        labels = owners(sandboxes)
        with self._counters.durations.timed(""):
            parts = await asyncio.gather(*(self._part(one.directory, labels[name]) for name, one in sandboxes.items()))
        own = write(self._counters.families(len(sandboxes))).encode()
        return await off_loop(joined, [{"": own}, *parts])

    async def _part(self, directory: Path, labels: str) -> Mapping[str, bytes]:
        """One sandbox's part; empty if it does not answer, or the answer is too large already."""
        try:
            answer = await ask(directory, self._timeout)
        except KataError as error:
            self._counters.failed += 1
            log.info("scrape: %s", error)
            return {}
        # While the slow ones are waited for.
        part, dropped = await off_loop(owned, answer, labels)
        size = sum(len(text) for text in part.values())
        if size > self._bytes_left:
            self._counters.dropped += sum(text.count(b"\n") for text in part.values())
            return {}
        self._bytes_left -= size
        self._counters.dropped += dropped
        return part


async def ask(directory: Path, timeout: float = TIMEOUT_S) -> bytes:
    """The metrics of one sandbox, as it answers them. Raises KataError."""
    # So long that the rest comes without the guest's, if that is what takes long.
    query = {"timeout": f"{max(timeout - _OWN_S, timeout / 2):g}"}
    return await request(directory, "GET", "/metrics", timeout=timeout, query=query, max_answer=_MAX_ANSWER)


def owned(answer: bytes, labels: str) -> tuple[dict[str, bytes], int]:
    """Check a sandbox's metrics and give them their owner's labels.

    Returns:
        The text of each family by its name, and the number of lines that were not taken.
    """
    families, dropped = read(answer.decode(errors="replace"), _KNOWN, _MAX_SAMPLES)
    return {name: write([family], labels).encode() for name, family in families.items()}, dropped


def joined(parts: Iterable[Mapping[str, bytes]]) -> bytes:
    """Make one text of the parts of several sandboxes: Prometheus wants each family once, with one head."""
    families: dict[str, list[bytes]] = {}
    for part in parts:
        for name, text in part.items():
            if name in families:
                # Without the two lines of the head.
                families[name].append(text.split(b"\n", 2)[2])
            else:
                families[name] = [text]
    return b"".join(text for texts in families.values() for text in texts)
