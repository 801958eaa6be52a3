"""Whether /dev/kvm offers hardware virtualization that can run an unmodified guest. A look at the host.

No VM is created: some hosts offer a KVM that runs only guests made for it, and another guest may harm the host. What
passes here is still to be proved by a boot (`kata.runtime.hypervisor.accel`).

Reference: the kernel's Documentation/virt/kvm/api.rst, sections 4.1 and 4.46.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_API_VERSION = 12
_GET_API_VERSION = 0xAE00
_GET_SUPPORTED_CPUID = 0xC008AE05
#: CPUID leaves requested; kernels know fewer than 100.
_CPUID_LEAVES = 256
_CPUID_HEADER = struct.Struct("=II")
#: function, index, flags, eax, ebx, ecx, edx, and three words of padding.
_CPUID_ENTRY = struct.Struct("=7I12x")

#: Features of every x86-64 CPU with hardware virtualization: (leaf, register, bit).
_BASELINE = {
    "pae": (0x1, "edx", 6),
    "apic": (0x1, "edx", 9),
    "sse2": (0x1, "edx", 26),
    "sse3": (0x1, "ecx", 0),
    "cx16": (0x1, "ecx", 13),
    "long mode": (0x80000001, "edx", 29),
}


def obstacle(
    device: Path = Path("/dev/kvm"), cpuinfo: Path = Path("/proc/cpuinfo"), *, pvm_guest: bool = False
) -> str | None:
    """Why KVM cannot run a guest on this host; None if nothing is known to prevent it.

    Args:
        device: the KVM device.
        cpuinfo: /proc/cpuinfo, or another file for tests.
        pvm_guest: whether the guest's kernel is made for a KVM without hardware virtualization.
    """
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{device} cannot be opened: {error.strerror}"
    try:
        version = fcntl.ioctl(fd, _GET_API_VERSION, 0)
        if version != _API_VERSION:
            return f"{device} has API version {version}, not {_API_VERSION}"
        if pvm_guest:
            return None  # such a KVM describes its virtual CPU in its own way: the trial boot has to show it
        if not cpu_flags(cpuinfo) & {"vmx", "svm"}:
            return (
                f"{device} opens, but the CPU has no hardware virtualization (neither vmx nor svm), "
                "so that it runs only guests made for it (PVM)"
            )
        leaves = bytearray(_CPUID_HEADER.size + _CPUID_LEAVES * _CPUID_ENTRY.size)
        _CPUID_HEADER.pack_into(leaves, 0, _CPUID_LEAVES, 0)
        fcntl.ioctl(fd, _GET_SUPPORTED_CPUID, leaves)
        missing = missing_features(bytes(leaves))
    except OSError as error:
        return f"{device} opens, but does not answer like KVM: {error.strerror}"
    finally:
        os.close(fd)
    if missing:
        return f"{device} opens, but would give a guest a CPU without {', '.join(missing)}"
    return None


def cpu_flags(cpuinfo: Path) -> set[str]:
    """The feature flags of the first CPU in /proc/cpuinfo.

    Raises:
        OSError: the file cannot be read.
    """
    with cpuinfo.open(encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                return set(value.split())
    return set()


def missing_features(cpuid: bytes) -> list[str]:
    """Names of the baseline features that a `struct kvm_cpuid2` lacks; all of them if it has no entries."""
    count = min(_CPUID_HEADER.unpack_from(cpuid)[0], (len(cpuid) - _CPUID_HEADER.size) // _CPUID_ENTRY.size)
    registers: dict[tuple[int, str], int] = {}
    for number in range(count):
        entry = _CPUID_ENTRY.unpack_from(cpuid, _CPUID_HEADER.size + number * _CPUID_ENTRY.size)
        function, index, _, _, _, ecx, edx = entry
        if index == 0:
            registers[function, "ecx"], registers[function, "edx"] = ecx, edx
    return [
        name
        for name, (function, register, bit) in _BASELINE.items()
        if not registers.get((function, register), 0) >> bit & 1
    ]
