"""Templates: VMs that were booted once and saved, and are restored in a tenth of a second.

    <root>/<key>/memory          the guest's memory, sparse; each VM maps it privately, or the copy in memory that all
                                 share (`kata.runtime.hypervisor.memory`), and shares what it only reads
    <root>/<key>/state           the state of devices and vCPUs, as the VMM writes it
    <root>/<key>/manifest.json   the VM's description, and how to tell that the files are unchanged
    <root>/.building-*           being built by the holder of the lock, or left by one that died
    <root>/.failed-<key>         why the last attempt to build it failed
    <root>/.lock

The key is a digest of everything that matters to the VM, so that a changed kernel, image, VMM, configuration or host
CPU means another template, and several can be in use at once. Templates appear and vanish by a rename; who has one
open keeps it.

Not here: how a template is built (`kata.runtime.hypervisor.template.build`), and the directory of all templates
(`kata.runtime.hypervisor.template.store`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from kata.errors import FailedPrecondition, NotFound
from kata.linux import mount
from kata.runtime.hypervisor import factory
from kata.runtime.hypervisor.base import VmPlan

MEMORY, STATE, MANIFEST = "memory", "state", "manifest.json"

#: Incremented when the same key no longer means the same content.
_FORMAT = 3
_MAX_MANIFEST = 64 * 1024
_MAX_STATE = 64 * 1024 * 1024


@dataclass(frozen=True)
class Template:
    """An open template: usable until `close`, even if it is removed meanwhile.

    Attributes:
        key: its name.
        directory: where it was found.
        memory, state: descriptors for `kata.runtime.hypervisor.factory.restore`.
        size: bytes that the memory takes on disk.
    """

    key: str
    directory: Path
    memory: int
    state: int
    size: int

    def close(self) -> None:
        """Close both files."""
        os.close(self.memory)
        os.close(self.state)

    def __enter__(self) -> Template:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def description(plan: VmPlan) -> dict[str, Any]:
    """What a VM of this plan has in common with every VM that can be restored from its template, as JSON has it.

    Raises:
        NotFound, InvalidArgument: as `kata.runtime.hypervisor.factory.identity`.
    """
    size = {"accelerator": plan.accelerator, "vcpus": plan.vcpus, "memory_mib": plan.memory_mib}
    domain = {"domain": plan.template_domain} if plan.template_domain else {}
    return size | domain | factory.identity(plan)


def key_of(vm: Mapping[str, Any]) -> str:
    """The name of the template of a VM, from its `description`."""
    return hashlib.sha256(json.dumps([_FORMAT, vm], sort_keys=True).encode()).hexdigest()[:24]


def write_manifest(directory: Path, vm: Mapping[str, Any], *, read_only: bool = False) -> None:
    """Write the manifest of a template whose other files are complete.

    Args:
        directory: the template's.
        vm: from `description`.
        read_only: whether the VMM is content to read the memory's file, as `VirtualMachine.save` says.

    Raises:
        OSError: a file is missing or cannot be written.
    """
    manifest = {
        "format": _FORMAT,
        "vm": vm,
        "read_only": read_only,
        "memory": _memory_identity(os.stat(directory / MEMORY)),
        "state": hashlib.sha256((directory / STATE).read_bytes()).hexdigest(),
    }
    fd = os.open(directory / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _memory_identity(info: os.stat_result) -> dict[str, int]:
    # Every write changes the change time, which nobody can set.
    return {"inode": info.st_ino, "size": info.st_size, "mtime_ns": info.st_mtime_ns, "ctime_ns": info.st_ctime_ns}


def open_template(root: Path, key: str) -> Template:
    """Open a template and check that it is complete and unchanged.

    Raises:
        NotFound: there is no template with this key.
        FailedPrecondition: it is broken or was changed.
    """
    directory = root / key
    fds: list[int] = []
    try:
        manifest = read_manifest(directory)
        fds.append(_open_memory(directory / MEMORY, read_only=manifest["read_only"]))
        fds.append(os.open(directory / STATE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
        info = os.fstat(fds[0])
        if _memory_identity(info) != manifest["memory"]:
            raise FailedPrecondition(f"template {key} is broken: its memory was changed after it was built")
        content = os.pread(fds[1], _MAX_STATE, 0)
        if hashlib.sha256(content).hexdigest() != manifest["state"]:
            raise FailedPrecondition(f"template {key} is broken: its state is not what was saved")
        template = Template(key, directory, fds[0], fds[1], info.st_blocks * 512)
        fds.clear()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not directory.is_dir():
            raise NotFound(f"template {key} does not exist") from error
        raise FailedPrecondition(f"template {key} is broken: {error.filename} is missing") from error
    except OSError as error:
        raise FailedPrecondition(f"template {key} cannot be opened: {error.strerror}") from error
    finally:
        for fd in fds:
            os.close(fd)
    return template


def _open_memory(path: Path, *, read_only: bool) -> int:
    """Open the memory: for reading only if the VMM is to open it as well, from which it then cannot get more.

    Raises:
        OSError: it cannot be opened.
    """
    if not read_only:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return mount.open_read_only(str(path))
    except OSError:
        # Where nothing may be mounted, the file's mode keeps out every VMM that is not root.
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read a manifest and check it.

    Returns:
        "vm": the VM's `description`; "read_only": whether the VMM is content to read the memory's file; "memory",
        "state": how to tell that the files are unchanged.

    Raises:
        FailedPrecondition: it is malformed or of another version.
        OSError: it cannot be read.
    """
    with (directory / MANIFEST).open("rb") as file:
        data = file.read(_MAX_MANIFEST)
    try:
        manifest = json.loads(data)
        if manifest["format"] == _FORMAT and isinstance(manifest["vm"], dict):
            return {name: manifest[name] for name in ("vm", "read_only", "memory", "state")}
        problem = "written by another version"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = str(error)
    raise FailedPrecondition(f"template {directory.name} is broken: manifest: {problem}")


def mark_used(template: Template) -> None:
    """Note that a VM is being restored from it, so that `prune` keeps it. Best effort."""
    try:
        os.utime(template.directory)
    except OSError:
        return
