"""What the containers of a sandbox may use, and what follows for the size of its VM and the limits of its host cgroup.

Pure arithmetic on limits. Imports nothing slow: a shim decides the VM's size before anything else.

Sources: OCI runtime-spec, config-linux.md, "Memory" and "CPU"; the kernel's scheduler/sched-bwc.rst for quota and
period.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kata.errors import InvalidArgument
from kata.linux.hierarchies import CPU_PERIOD_US, CgroupLimits
from kata.runtime.config.settings import Config

_MIB = 1 << 20
_CPUSET = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*")
#: Container engines write numbers near 2^63 for "no limit", rounded down to pages.
_UNLIMITED = 1 << 60
#: The kernel's smallest quota is 1 ms, and its periods are 1 ms to 1 s.
_MIN_QUOTA_US = 1000
_PERIOD_US = (1000, 1_000_000)
#: What a sandbox takes besides the guest's memory, in MiB: the emulator's translated code, the VMM's own data, the shim
#: and the helper that serves files. A limit has to leave room for it, or the kernel would kill the whole sandbox.
_OVERHEAD_MIB = 640


@dataclass(frozen=True)
class Size:
    """CPUs and memory of a host or a VM."""

    vcpus: int
    memory_mib: int


@dataclass(frozen=True)
class Demand:
    """What a container may use; 0, or an empty set, where it has no limit.

    Attributes:
        cpu_milli: thousandths of a CPU.
        memory: bytes.
        cpus: numbers of the host's CPUs that it may use.
        shares: its CPU weight on the scale of cgroup version 1 (2 to 262144).
    """

    cpu_milli: int = 0
    memory: int = 0
    cpus: frozenset[int] = frozenset()
    shares: int = 0


def limits_of(demand: Demand | None) -> CgroupLimits:
    """A container's limits as a cgroup has them, without the CPUs, which its parent may not have."""
    demand = demand or Demand()
    return CgroupLimits(demand.cpu_milli or None, demand.shares or None, memory=demand.memory or None)


def demand(resources: Mapping[str, Any] | None, host: Size) -> Demand:
    """What OCI `linux.resources` allow.

    Args:
        resources: may be empty or None: no limits.
        host: what the host has.

    Raises:
        InvalidArgument: a limit that no kernel would take.
    """
    cpu: Mapping[str, Any] = (resources or {}).get("cpu") or {}
    memory = int(((resources or {}).get("memory") or {}).get("limit") or 0)
    quota, period = int(cpu.get("quota") or 0), int(cpu.get("period") or 0) or CPU_PERIOD_US
    if memory < -1:
        raise InvalidArgument(f"memory limit {memory} is negative", hint="-1 means no limit")
    if quota < -1 or 0 < quota < _MIN_QUOTA_US:
        raise InvalidArgument(
            f"cpu quota {quota} us is below the kernel's minimum of {_MIN_QUOTA_US} us", hint="-1 means no limit"
        )
    if not _PERIOD_US[0] <= period <= _PERIOD_US[1]:
        raise InvalidArgument(f"invalid cpu period {period} us ({_PERIOD_US[0]} to {_PERIOD_US[1]})")
    return Demand(
        cpu_milli=-(-quota * 1000 // period) if quota > 0 else 0,
        memory=memory if 0 < memory < _UNLIMITED else 0,
        cpus=parse_cpus(str(cpu.get("cpus") or ""), host.vcpus),
        shares=int(cpu.get("shares") or 0),
    )


def parse_cpus(text: str, host_cpus: int) -> frozenset[int]:
    """The numbers in a list such as "0-2,5" (cpuset(7), "List format"); none in an empty one.

    Args:
        text: the list.
        host_cpus: how many CPUs the host has.

    Raises:
        InvalidArgument: it is not such a list, or names a CPU that the host does not have.
    """
    if not text:
        return frozenset()
    if not _CPUSET.fullmatch(text):
        raise InvalidArgument(f"invalid cpuset {text!r}", hint='write it as "0-2,5"')
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise InvalidArgument(f"invalid cpuset {text!r}: range {part} is reversed")
        if int(last or first) >= host_cpus:
            raise InvalidArgument(f"cpuset {text!r} names a CPU that this host does not have; it has {host_cpus}")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def format_cpus(cpus: Iterable[int]) -> str:
    """A list that `parse_cpus` reads."""
    return ",".join(str(number) for number in sorted(cpus))


def size_class(memory_mib: int) -> int:
    """Round up to one of four sizes for each power of two, so that few templates serve many limits.

    A container may still use no more than its limit, and what the guest does not touch takes no memory of the host.
    """
    step = max(1, 1 << (memory_mib.bit_length() - 3))
    return -(-memory_mib // step) * step


class Budget:
    """What the containers of a sandbox may use together.

    Args:
        announced: what the container engine has said that all containers will have; it counts until they have it.
        host: what the host has; a VM never gets more.
    """

    def __init__(self, config: Config, host: Size, announced: Demand | None = None) -> None:
        self._config = config
        self._host = host
        self._announced = announced or Demand()
        self._demands: dict[str, Demand] = {}

    def set(self, container_id: str, resources: Mapping[str, Any] | None) -> None:
        """Set a container's limits. A pod's sandbox is not a container and has none.

        Raises:
            InvalidArgument: a limit that no kernel would take; nothing has changed.
        """
        self._demands[container_id] = demand(resources, self._host)
        if self._sum("memory") >= self._announced.memory and self._sum("cpu_milli") >= self._announced.cpu_milli:
            self._announced = Demand()

    def update(self, container_id: str, resources: Mapping[str, Any]) -> None:
        """Change those limits of a container that `resources` names. Raises as `set`."""
        new, old = demand(resources, self._host), self._demands.get(container_id, Demand())
        cpu = resources.get("cpu") or {}
        self._demands[container_id] = Demand(
            cpu_milli=new.cpu_milli if cpu.get("quota") else old.cpu_milli,
            memory=new.memory if (resources.get("memory") or {}).get("limit") else old.memory,
            cpus=new.cpus or old.cpus,
            shares=new.shares or old.shares,
        )

    def get(self, container_id: str) -> Demand | None:
        """A container's limits, for `restore`."""
        return self._demands.get(container_id)

    def restore(self, container_id: str, former: Demand | None) -> None:
        """Give a container the limits again that it had; None: it is gone."""
        self._demands.pop(container_id, None)
        if former is not None:
            self._demands[container_id] = former

    def _sum(self, name: str) -> int:
        return sum(getattr(each, name) for each in self._demands.values())

    def size(self) -> Size:
        """The size of the VM: the guest's own needs (the configured defaults), and on top what the limits allow."""
        memory = max(self._announced.memory, self._sum("memory"))
        cpu_milli = max(self._announced.cpu_milli, self._sum("cpu_milli"))
        if not cpu_milli:
            # Without a quota a container may still be bound to some CPUs, and can use no more than those.
            cpu_milli = 1000 * len(frozenset[int]().union(*(each.cpus for each in self._demands.values())))
        hypervisor, host = self._config.hypervisor, self._host
        return Size(
            min(hypervisor.vcpus(host.vcpus) + -(-cpu_milli // 1000), hypervisor.max_vcpus(host.vcpus)),
            min(hypervisor.default_memory + -(-memory // _MIB), hypervisor.max_memory(host.memory_mib)),
        )

    def limits(self, memory_mib: int) -> CgroupLimits:
        """The limits of the sandbox's host cgroup: the sum, and the guest's own needs.

        A container without a limit leaves the sandbox without one. The guest holds each container to its own limits;
        these hold the VM as a whole, whatever its guest does.

        Args:
            memory_mib: the VM's memory.
        """
        demands = self._demands.values()

        def all_have(name: str) -> bool:
            return bool(demands) and all(getattr(each, name) for each in demands)

        base = 1000 * self._config.hypervisor.vcpus(self._host.vcpus)
        cpus = frozenset[int]().union(*(each.cpus for each in demands)) if all_have("cpus") else frozenset[int]()
        return CgroupLimits(
            cpu_milli=base + self._sum("cpu_milli") if all_have("cpu_milli") else None,
            cpu_shares=self._sum("shares") or None,
            cpus=format_cpus(cpus) or None,
            memory=(memory_mib + _OVERHEAD_MIB) * _MIB if all_have("memory") else None,
        )
