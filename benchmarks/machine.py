"""A description of the host, as far as it matters for the figures."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
from pathlib import Path

from kata.runtime.config.loader import load
from kata.runtime.hypervisor import accel
from kata.version import VERSION


def machine() -> dict[str, str]:
    """Return hardware and versions of this host, by name.

    Raises:
        KataError: no VM can run here.
    """
    config = load().config
    verdict = asyncio.run(accel.choose_for(config.hypervisor))
    return {
        "processor": f"{os.cpu_count()} × {_first('/proc/cpuinfo', 'model name')}",
        "memory": f"{int(_first('/proc/meminfo', 'MemTotal').split()[0]) / 1024**2:.0f} GiB",
        "kernel": platform.release(),
        "accelerator": f"{verdict.name} ({verdict.reason})",
        "qemu": _version(str(config.hypervisor.path), "--version"),
        "containerd": _version("containerd", "--version"),
        "runc": _version("runc", "--version"),
        "python": platform.python_version(),
        "pykata": VERSION,
    }


def _first(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return "unknown"


def _version(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "none"
    return done.stdout.splitlines()[0]
