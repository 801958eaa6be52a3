"""Facts about this host for reports. What cannot be found out is "" or 0, because a report should not fail."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_VERSION_TIMEOUT_S = 10.0


def qemu_version(qemu: Path) -> str:
    """Return QEMU's version, such as "7.2.22"; "" if it is not installed or does not print one."""
    try:
        result = subprocess.run(
            [qemu, "--version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT_S,
            check=True,
            errors="replace",
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    # QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)
    words = result.stdout.split()
    return words[3] if words[:3] == ["QEMU", "emulator", "version"] and len(words) > 3 else ""


def memory() -> dict[str, int]:
    """Return MemTotal, MemFree and MemAvailable in KiB (proc_meminfo(5))."""
    found = {"MemTotal": 0, "MemFree": 0, "MemAvailable": 0}
    for line in _lines("/proc/meminfo"):
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0])
    return found


def cpu() -> tuple[str, str]:
    """Return the CPU's vendor and model (proc_cpuinfo(5))."""
    found: dict[str, str] = {}
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found.get("vendor_id", ""), found.get("model name", "")


def cpu_flags() -> frozenset[str]:
    """Return the features of the first CPU (proc_cpuinfo(5))."""
    lines = (line.partition(":") for line in _lines("/proc/cpuinfo"))
    return frozenset(next((value.split() for name, _, value in lines if name.strip() == "flags"), ()))


def distribution() -> tuple[str, str]:
    """Return name and version (os-release(5))."""
    found: dict[str, str] = {}
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        for line in _lines(path):
            name, _, value = line.partition("=")
            found.setdefault(name, value.strip("\"'"))
    return found.get("NAME", ""), found.get("VERSION_ID", "")


def kernel_release() -> str:
    """Return the running kernel's release, as `uname -r` does."""
    return os.uname().release


def has_vsock() -> bool:
    """Return whether the host supports vsock. For information: it is not needed."""
    return os.path.exists("/dev/vhost-vsock")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
