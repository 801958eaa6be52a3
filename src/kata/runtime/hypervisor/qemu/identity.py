"""What identifies a VM to QEMU: a VM can be restored from another's state if both have the same devices and files.

Reference: QEMU's docs/devel/migration.rst: source and destination run the same command line, but for the host's side
of each device.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from kata.errors import NotFound
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.kvm import cpu_flags
from kata.runtime.hypervisor.qemu.command import CONSOLE_FD, MEMORY_FD, QMP_FD, ROOT_FD, SHARE_FD, command_line
from kata.runtime.hypervisor.qemu.share import server_of


def identity(plan: VmPlan) -> dict[str, Any]:
    """The command line without what differs between sandboxes, and the files that QEMU and the guest run.

    Raises:
        NotFound: a file of the plan does not exist.
        InvalidArgument: the kernel command line is too long.
    """
    anonymous = replace(
        plan,
        sandbox_id="template",
        share_dir=plan.share_dir and Path("/share"),
        root_dir=plan.root_dir and Path("/root"),
    )
    served = [SHARE_FD, ROOT_FD] if server_of(plan) else []
    names = [QMP_FD, CONSOLE_FD, MEMORY_FD, *served, *plan.channels]
    found: dict[str, Any] = {"command": command_line(anonymous, {name: number for number, name in enumerate(names)})}
    for what, path in (("vmm", plan.vmm), ("kernel", plan.kernel), ("initrd", plan.initrd), ("image", plan.image)):
        if path is not None:
            found[what] = _file_identity(path)
    # A VMM with a user id of its own needs a memory file that is not only root's.
    found["jail"] = bool(plan.jail_uids)
    if plan.accelerator == "kvm":
        # The host's CPU shows through, and the host's kernel contributes to the state.
        flags = " ".join(sorted(cpu_flags(Path("/proc/cpuinfo"))))
        found["host"] = [os.uname().release, hashlib.sha256(flags.encode()).hexdigest()]
    return found


def _file_identity(path: Path) -> list[object]:
    """What changes when the file does. Its content is not read, which would take longer than a start.

    Raises:
        NotFound: there is no such file, or it is not accessible.
    """
    try:
        real = path.resolve(strict=True)
        info = real.stat()
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from error
    return [str(real), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns]
