"""What sandboxes use: counters of two moments to rates, and rates to what `kata stats` and `kata top` show.

Pure. What a sandbox says may be a guest's: a value that is no number counts as 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Seconds; the year 9999 ends then.
_MAX_TIME = 253402300800.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@dataclass(frozen=True)
class Counters:
    """What a container, or all of a sandbox, has used until a moment, or has at it.

    Attributes:
        cpu_ns, received, sent, read, written: since it began; in bytes but for the first.
        memory: bytes.
        limit: of the memory; None without one.
        pids: how many processes and threads.
    """

    cpu_ns: int = 0
    memory: int = 0
    limit: int | None = None
    pids: int = 0
    received: int = 0
    sent: int = 0
    read: int = 0
    written: int = 0


@dataclass(frozen=True)
class Sample:
    """One answer of `/stats`.

    Attributes:
        time: seconds since 1970.
        vm: CPU time and memory of the VMM, the pod's network, disks and processes of all containers.
        containers: by id.
    """

    time: float
    vm: Counters
    containers: Mapping[str, Counters] = field(default_factory=dict)


@dataclass(frozen=True)
class Rates:
    """What is used a second: between two samples, or 0 with one.

    Attributes:
        cpu: of one CPU; 1.5 is one and a half.
        received, sent, read, written: bytes.
    """

    cpu: float = 0.0
    received: float = 0.0
    sent: float = 0.0
    read: float = 0.0
    written: float = 0.0


def parse_sample(answer: bytes) -> Sample:
    """A sample of what a sandbox answers.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        found = json.loads(answer)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    containers = {str(name): _container(_dict(one)) for name, one in _dict(found.get("containers")).items()}
    network = [_dict(one) for one in _dict(found.get("network")).values()]
    vm = _dict(found.get("vm"))
    return Sample(
        _time(found.get("time")),
        Counters(
            cpu_ns=_number(vm.get("cpu_ns")),
            memory=_number(vm.get("memory_bytes")),
            limit=_number(vm.get("memory_size_bytes")) or None,
            pids=sum(one.pids for one in containers.values()),
            received=sum(_number(one.get("rx_bytes")) for one in network),
            sent=sum(_number(one.get("tx_bytes")) for one in network),
            read=sum(one.read for one in containers.values()),
            written=sum(one.written for one in containers.values()),
        ),
        containers,
    )


def _container(one: Mapping[str, Any]) -> Counters:
    return Counters(
        cpu_ns=_number(one.get("cpu_ns")),
        memory=_number(one.get("memory_bytes")),
        limit=_number(one.get("memory_limit_bytes")) or None,
        pids=_number(one.get("pids")),
        read=_number(one.get("read_bytes")),
        written=_number(one.get("written_bytes")),
    )


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _time(value: object) -> float:
    return float(value) if isinstance(value, float) and 0 <= value < _MAX_TIME else float(_number(value))


def _number(value: object) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value < 1 << 64 else 0  # type: ignore[operator, call-overload]


def rates(before: Counters | None, after: Counters, seconds: float) -> Rates:
    """What has been used a second.

    Args:
        before: an earlier moment; None if there is none.
        after: the later moment.
        seconds: between them.
    """
    if before is None or seconds <= 0:
        return Rates()

    def rate(first: int, second: int) -> float:
        # It may have begun anew.
        return max(0, second - first) / seconds

    return Rates(
        rate(before.cpu_ns, after.cpu_ns) / 1e9,
        rate(before.received, after.received),
        rate(before.sent, after.sent),
        rate(before.read, after.read),
        rate(before.written, after.written),
    )


@dataclass(frozen=True)
class View:
    """One sandbox at a moment.

    Attributes:
        told: what `kata inspect` tells of it.
        before, after: the last two samples, None if it has not given one.
    """

    told: Mapping[str, Any]
    before: Sample | None = None
    after: Sample | None = None

    @property
    def seconds(self) -> float:
        """Between the samples; 0 if there are not two."""
        return self.after.time - self.before.time if self.before and self.after else 0.0

    @property
    def vm(self) -> tuple[Counters, Rates] | None:
        """Of the whole sandbox."""
        if self.after is None:
            return None
        return self.after.vm, rates(self.before.vm if self.before else None, self.after.vm, self.seconds)

    def containers(self) -> Iterator[tuple[Mapping[str, Any], Counters, Rates]]:
        """Of each container: what is told of it, and what it uses."""
        told = {str(one.get("id")): one for one in self.told.get("containers") or () if isinstance(one, dict)}
        for name, counters in (self.after.containers if self.after else {}).items():
            before = self.before.containers.get(name) if self.before else None
            yield told.get(name, {"id": name}), counters, rates(before, counters, self.seconds)


def size(count: float) -> str:
    """Bytes in three digits, powers of 1024."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f}{_UNITS[unit]}" if unit == 0 or count >= 100 else f"{count:.3g}{_UNITS[unit]}"


def percent(share: float) -> str:
    """A share of 1 in per cent."""
    return f"{share * 100:.1f}%"
