"""Durations of calls, counted in buckets: as Prometheus' histograms, without any of Prometheus on the way of a call."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata.metrics.exposition import Family

#: Upper ends of the buckets in milliseconds, as Kata has them; one more bucket takes what is longer.
BUCKETS = tuple(float(1 << power) for power in range(10))
#: Actions that are told apart. There are fewer; a name that a caller chooses must not fill the memory.
_MAX_ACTIONS = 128


class Durations:
    """How long calls took, by what was called."""

    def __init__(self) -> None:
        #: For each action the counts of the buckets, and the sum of all in milliseconds.
        self._counts: dict[str, tuple[list[int], list[float]]] = {}

    @contextmanager
    def timed(self, action: str) -> Iterator[None]:
        """Count how long the body takes, also when it fails."""
        begin = perf_counter()
        try:
            yield
        finally:
            self.add(action, perf_counter() - begin)

    def add(self, action: str, seconds: float) -> None:
        """Count a call that took so long."""
        found = self._counts.get(action)
        if found is None:
            if len(self._counts) >= _MAX_ACTIONS:
                return
            found = self._counts[action] = ([0] * (len(BUCKETS) + 1), [0.0])
        counts, total = found
        counts[bisect_left(BUCKETS, seconds * 1000)] += 1
        total[0] += seconds * 1000

    def fill(self, family: Family) -> None:
        """Add everything to a histogram, with the label "action" unless it is the empty text."""
        # Imported with the first scrape: each shim counts, and few are ever asked.
        from kata.metrics.exposition import number

        for action, (counts, total) in sorted(self._counts.items()):
            labels = {"action": action} if action else {}
            so_far = 0
            for end, count in zip((*BUCKETS, None), counts, strict=True):
                so_far += count
                family.add(so_far, {**labels, "le": "+Inf" if end is None else number(end)}, "_bucket")
            family.add(total[0], labels, "_sum")
            family.add(so_far, labels, "_count")
