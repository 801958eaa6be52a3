"""Facts about this host, read from where Linux keeps them. What is unknown is "" or 0: a report is no place to fail."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_VERSION_TIMEOUT_S = 10.0


def qemu_version(qemu: Path) -> str:
    """Of the form "7.2.22"; "" if it is not there or does not say."""
    try:
        answer = subprocess.run(
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
    words = answer.stdout.split()
    return words[3] if words[:3] == ["QEMU", "emulator", "version"] and len(words) > 3 else ""


def memory() -> dict[str, int]:
    """MemTotal, MemFree and MemAvailable in KiB."""
    found = {"MemTotal": 0, "MemFree": 0, "MemAvailable": 0}
    for line in _lines("/proc/meminfo"):
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0])
    return found


def processor() -> tuple[str, str]:
    """Vendor and model."""
    found: dict[str, str] = {}
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found.get("vendor_id", ""), found.get("model name", "")


def distribution() -> tuple[str, str]:
    """Name and version (os-release(5))."""
    found: dict[str, str] = {}
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        for line in _lines(path):
            name, _, value = line.partition("=")
            found.setdefault(name, value.strip("\"'"))
    return found.get("NAME", ""), found.get("VERSION_ID", "")


def kernel_release() -> str:
    return os.uname().release


def has_vsock() -> bool:
    """Whether the host could talk to guests by vsock. Nothing here needs it."""
    return os.path.exists("/dev/vhost-vsock")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
