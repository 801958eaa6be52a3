"""What a sandbox uses: its answer to `/stats` checked, rates between two of them, and the last hour of these.

{"time", "containers": {id: {…}}, "network": {interface: {…}}, "vm": {"cpu_ns", "memory_bytes", …}}
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: Containers and network interfaces of a sandbox that are looked at.
_MAX_CONTAINERS = 128
_MAX_INTERFACES = 64
_MAX_NAME = 128

#: Seconds between two points of a history, and how many there are: an hour.
POINT_INTERVAL_S = 10.0
POINTS = 360
#: Samples come a little early or late.
_ABOUT_S = POINT_INTERVAL_S * 0.9


class Point(NamedTuple):
    """What was used at a time.

    Attributes:
        time: seconds since 1970.
        cpu: of the VMM, in percent of one CPU.
        memory: of the VMM, in bytes, what it shares with others by its share.
        guest_memory: of the containers, in bytes.
        received, sent: bytes a second.
    """

    time: float
    cpu: float
    memory: float
    guest_memory: float
    received: float
    sent: float


@dataclass(frozen=True)
class Used:
    """One container.

    Attributes:
        cpu_ns: CPU time in nanoseconds.
        memory, limit: bytes; without a limit None.
        pids: processes.
    """

    cpu_ns: float
    memory: float
    limit: float | None
    pids: float


@dataclass(frozen=True)
class Sample:
    """One answer. Counters go on counting; times are seconds."""

    time: float
    cpu_ns: float
    memory: float
    received: float
    sent: float
    containers: Mapping[str, Used] = field(default_factory=dict)

    @classmethod
    def of(cls, answer: Any) -> Sample:
        """Check an answer.

        Raises:
            ValueError: it is not one.
        """
        try:
            containers = {
                name[:_MAX_NAME]: Used(
                    _number(one["cpu_ns"]),
                    _number(one["memory_bytes"]),
                    None if one["memory_limit_bytes"] is None else _number(one["memory_limit_bytes"]),
                    _number(one["pids"]),
                )
                for name, one in _first(answer["containers"], _MAX_CONTAINERS)
            }
            interfaces = [one for _, one in _first(answer["network"], _MAX_INTERFACES)]
            return cls(
                _number(answer["time"]),
                _number(answer["vm"]["cpu_ns"]),
                _number(answer["vm"]["memory_bytes"]),
                sum(_number(one["rx_bytes"]) for one in interfaces),
                sum(_number(one["tx_bytes"]) for one in interfaces),
                containers,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the statistics of a sandbox: {error!r:.200}") from error

    def since(self, before: Sample) -> Point:
        """What was used from then on."""
        memory = sum(one.memory for one in self.containers.values())
        return Point(
            self.time,
            self._rate(before, self.cpu_ns - before.cpu_ns) / 1e7,
            self.memory,
            memory,
            self._rate(before, self.received - before.received),
            self._rate(before, self.sent - before.sent),
        )

    def container_cpu(self, before: Sample) -> dict[str, float]:
        """CPU time of each container from then on, in percent of one CPU."""
        return {
            name: self._rate(before, one.cpu_ns - before.containers[name].cpu_ns) / 1e7
            for name, one in self.containers.items()
            if name in before.containers
        }

    def _rate(self, before: Sample, difference: float) -> float:
        """A second's part; 0 where a counter has begun anew."""
        return max(0.0, difference / (self.time - before.time)) if self.time > before.time else 0.0


def _number(value: Any) -> float:
    """A count.

    Raises:
        ValueError: it is none.
        TypeError: it is not even like one.
    """
    found = float(value)
    if isinstance(value, bool | str) or not math.isfinite(found) or found < 0:
        raise ValueError(f"{value!r:.50} is no count")
    return found


def _first(mapping: Any, most: int) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in list(mapping.items())[:most] if isinstance(name, str)]


class History:
    """The last points, each `POINT_INTERVAL_S` after the one before, in a ring of fixed size."""

    def __init__(self, points: int = POINTS) -> None:
        self._points = points
        self._values = array("d")
        self._next = 0
        self._last_time = -math.inf
        self._last: Sample | None = None

    def add(self, sample: Sample) -> None:
        """Take a sample of a sandbox: what it has used since the last point is a point, if it is time for one."""
        if self._last is None:
            self._last = sample
        elif sample.time - self._last.time >= _ABOUT_S:
            self.append(sample.since(self._last))
            self._last = sample

    def append(self, point: Point) -> None:
        """Take a point, if it is time for one."""
        if point.time - self._last_time < _ABOUT_S:
            return
        self._last_time = point.time
        width = len(point)
        if len(self._values) < self._points * width:
            self._values.extend(point)
            return
        begin = self._next * width
        self._values[begin : begin + width] = array("d", point)
        self._next = (self._next + 1) % self._points

    def points(self) -> list[Point]:
        """The points, oldest first."""
        width = len(Point._fields)
        split = self._next * width
        ordered = [*self._values[split:], *self._values[:split]]
        return [Point(*ordered[begin : begin + width]) for begin in range(0, len(ordered), width)]
