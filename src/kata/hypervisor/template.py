"""Templates: machines that were booted once and saved, from which others go on in a tenth of a second.

    <root>/<key>/memory          the guest's memory, sparse; each machine maps it privately, shares what it only reads
    <root>/<key>/state           the devices' and processors' state, as QEMU writes it
    <root>/<key>/manifest.json   what the template is of, and how its files are known to be unchanged
    <root>/.building-*           being made, by whoever has the lock, or left by one who died
    <root>/.failed-<key>         why the last attempt to make it failed
    <root>/.lock

The key is a digest over all that matters to the machine, so a changed kernel, image, QEMU, configuration or host
processor means another template, and several can be in use side by side. Templates appear and vanish by a rename;
who has one open keeps it. Not here: how a template is made (`kata.hypervisor.template_build`).
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from kata.errors import DeadlineExceeded, FailedPrecondition, KataError, NotFound, ResourceExhausted
from kata.hypervisor.base import VmPlan
from kata.hypervisor.kvm import processor_flags
from kata.hypervisor.qemu.command import CONSOLE_FD, MEMORY_FD, QMP_FD, SHARE_FD, command_line

MEMORY, STATE, MANIFEST = "memory", "state", "manifest.json"
BUILDING = ".building-"

#: Raised when the same key would no longer mean the same content.
_FORMAT = 1
_REMOVED = ".removed-"
_FAILED = ".failed-"
_LOCK = ".lock"
_LOCK_POLL_S = 0.05
_MANIFEST_LIMIT = 64 * 1024
_STATE_LIMIT = 64 * 1024 * 1024
#: Seconds for which a failed attempt is not repeated: each would double the time of a start.
_FAILURE_LIFETIME_S = 600.0


@dataclass(frozen=True)
class Template:
    """An open template. It stays usable until `close`, whatever becomes of its files' names.

    Attributes:
        memory, state: descriptors for `QemuMachine`.
        size: bytes that the memory takes on the disk.
    """

    key: str
    directory: Path
    memory: int
    state: int
    size: int

    def close(self) -> None:
        os.close(self.memory)
        os.close(self.state)

    def __enter__(self) -> Template:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Listed:
    """A template as `kata factory status` shows it.

    Attributes:
        machine: what it is of, see `description`; empty if it is broken.
        size: bytes that its files take on the disk.
        used: when a machine last started from it, seconds since 1970.
        problem: why it cannot be used, or "".
    """

    key: str
    machine: Mapping[str, Any]
    size: int
    used: float
    problem: str


def description(plan: VmPlan) -> dict[str, Any]:
    """All that a machine of this plan has in common with the machines that can go on from its template."""
    anonymous = replace(plan, sandbox_id="template", share_dir=plan.share_dir and Path("/share"), environment=())
    names = (QMP_FD, CONSOLE_FD, MEMORY_FD, SHARE_FD, *plan.channels)
    found: dict[str, Any] = {
        "accelerator": plan.accelerator,
        "vcpus": plan.vcpus,
        "memory_mib": plan.memory_mib,
        "command": command_line(anonymous, {name: number for number, name in enumerate(names)}),
    }
    for what, path in (("qemu", plan.qemu), ("kernel", plan.kernel), ("initrd", plan.initrd), ("image", plan.image)):
        if path is not None:
            found[what] = _file_identity(path)
    if plan.accelerator == "kvm":
        # The processor shows through, and the host's kernel has a part in the state.
        flags = " ".join(sorted(processor_flags(Path("/proc/cpuinfo"))))
        found["host"] = [os.uname().release, hashlib.sha256(flags.encode()).hexdigest()]
    return found


def key_of(machine: Mapping[str, Any]) -> str:
    """The name of the template of a machine, from its `description`."""
    return hashlib.sha256(json.dumps([_FORMAT, machine], sort_keys=True).encode()).hexdigest()[:24]


def _file_identity(path: Path) -> list[object]:
    """What changes when the file does; its content is never read here, which would cost more than a start may."""
    try:
        real = path.resolve(strict=True)
        info = real.stat()
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from error
    return [str(real), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns]


def write_manifest(directory: Path, machine: Mapping[str, Any]) -> None:
    """Describe the finished files of a template. Raises OSError."""
    manifest = {
        "format": _FORMAT,
        "machine": machine,
        "memory": _memory_identity(os.stat(directory / MEMORY)),
        "state": hashlib.sha256((directory / STATE).read_bytes()).hexdigest(),
    }
    fd = os.open(directory / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _memory_identity(info: os.stat_result) -> dict[str, int]:
    # Any write, by whatever way, moves the change time, which nobody can set.
    return {"inode": info.st_ino, "size": info.st_size, "mtime_ns": info.st_mtime_ns, "ctime_ns": info.st_ctime_ns}


def open_template(root: Path, key: str) -> Template:
    """Open a template and see that it is whole.

    Raises:
        NotFound: there is none.
        FailedPrecondition: it is broken or was changed.
    """
    directory = root / key
    fds: list[int] = []
    try:
        manifest = _read_manifest(directory)
        # For writing, because QEMU opens the memory so, though it maps it privately and writes nothing.
        fds.append(os.open(directory / MEMORY, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
        fds.append(os.open(directory / STATE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
        info = os.fstat(fds[0])
        if _memory_identity(info) != manifest["memory"]:
            raise FailedPrecondition(f"template {key} is broken: its memory was changed after it was made")
        content = os.pread(fds[1], _STATE_LIMIT, 0)
        if hashlib.sha256(content).hexdigest() != manifest["state"]:
            raise FailedPrecondition(f"template {key} is broken: its state is not what was saved")
        template = Template(key, directory, fds[0], fds[1], info.st_blocks * 512)
        fds.clear()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not directory.is_dir():
            raise NotFound(f"there is no template {key}") from error
        raise FailedPrecondition(f"template {key} is broken: {error.filename} is missing") from error
    except OSError as error:
        raise FailedPrecondition(f"template {key} cannot be opened: {error.strerror}") from error
    finally:
        for fd in fds:
            os.close(fd)
    return template


def _read_manifest(directory: Path) -> dict[str, Any]:
    """A manifest of which all that is used is there."""
    with (directory / MANIFEST).open("rb") as file:
        data = file.read(_MANIFEST_LIMIT)
    try:
        manifest = json.loads(data)
        if manifest["format"] != _FORMAT or not isinstance(manifest["machine"], dict):
            raise ValueError("made by another version")
        return {name: manifest[name] for name in ("machine", "memory", "state")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FailedPrecondition(f"template {directory.name} is broken: manifest: {error}") from None


def mark_used(template: Template) -> None:
    """Remember that a machine started from it just now: what is used stays. Nothing depends on it."""
    try:
        os.utime(template.directory)
    except OSError:
        return


def discard(root: Path, key: str, memory: int | None = None) -> None:
    """Remove a template; machines that started from it run on. With `memory`, only if it still is that one.

    Raises:
        FailedPrecondition: it cannot be removed.
    """
    directory = root / key
    try:
        if memory is not None and not os.path.samestat(os.stat(directory / MEMORY), os.fstat(memory)):
            return
    except FileNotFoundError:
        pass  # a part of it is missing, or all of it
    try:
        # Out of sight by one rename first: nobody finds half a template.
        doomed = Path(tempfile.mkdtemp(prefix=_REMOVED, dir=root))
        if directory.exists():
            directory.rename(doomed / key)
        shutil.rmtree(doomed, ignore_errors=True)
    except OSError as error:
        raise FailedPrecondition(f"template {key} cannot be removed: {error.strerror}") from error


def list_templates(root: Path) -> list[Listed]:
    """What is there, the most recently used first; broken ones too."""
    found = []
    for directory in root.iterdir() if root.is_dir() else ():
        if directory.name.startswith(".") or not directory.is_dir():
            continue
        machine: Mapping[str, Any] = {}
        problem = ""
        try:
            with open_template(root, directory.name):
                machine = _read_manifest(directory)["machine"]
        except KataError as error:
            problem = error.message
        try:
            size = sum(path.stat().st_blocks * 512 for path in directory.iterdir())
            found.append(Listed(directory.name, machine, size, directory.stat().st_mtime, problem))
        except FileNotFoundError:
            continue  # removed meanwhile
    return sorted(found, key=lambda template: template.used, reverse=True)


def prune(root: Path, keep: int) -> list[str]:
    """Remove all but the `keep` most recently used templates, and broken ones; returns the keys. Hold the lock."""
    listed = list_templates(root)
    usable = [template.key for template in listed if not template.problem]
    removed = [template.key for template in listed if template.key not in usable[:keep]]
    for key in removed:
        discard(root, key)
    return removed


def sweep(root: Path) -> None:
    """Remove what builders left that died. Hold the lock."""
    for path in root.iterdir():
        if path.name.startswith((BUILDING, _REMOVED)):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(_FAILED) and _age(path) > _FAILURE_LIFETIME_S:
            path.unlink(missing_ok=True)


def destroy(root: Path) -> list[str]:
    """Remove every template, and what was left of others; returns the keys. Hold the lock."""
    removed = prune(root, 0)
    sweep(root)
    for path in _failures(root):
        path.unlink(missing_ok=True)
    return removed


def remember_failure(root: Path, key: str, reason: str) -> None:
    """Have the next starts not try again for a while. What cannot be written is tried again."""
    try:
        (root / f"{_FAILED}{key}").write_text(reason, encoding="utf-8")
    except OSError:
        return


def recent_failure(root: Path, key: str) -> str | None:
    """Why an attempt a while ago failed; None if there was none."""
    path = root / f"{_FAILED}{key}"
    try:
        return path.read_text(encoding="utf-8") if _age(path) < _FAILURE_LIFETIME_S else None
    except (OSError, ValueError):
        return None


def _failures(root: Path) -> Iterator[Path]:
    return root.glob(f"{_FAILED}*")


def _age(path: Path) -> float:
    return abs(time.time() - path.stat().st_mtime)


@asynccontextmanager
async def locked(root: Path, timeout: float) -> AsyncIterator[None]:
    """Hold the one right to make and to remove templates.

    Raises:
        DeadlineExceeded: somebody else held it for `timeout` seconds.
        FailedPrecondition: the directory cannot be made, or not be written to.
    """
    lock = _open_lock(root)
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"another process has been busy in {root} for {timeout:.0f} s")
            await asyncio.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(lock)


def _open_lock(root: Path) -> int:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FailedPrecondition(
            f"templates cannot be kept in {root}: {error.strerror}", hint="set template_path in the configuration"
        ) from error


def require_room(root: Path, size: int) -> None:
    """See that the disk has `size` bytes left.

    Raises:
        ResourceExhausted: it has not.
    """
    info = os.statvfs(root)
    if info.f_bavail * info.f_frsize < size:
        raise ResourceExhausted(
            f"{root} has {info.f_bavail * info.f_frsize >> 20} MiB left, a template may need {size >> 20} MiB",
            hint="make room, or set template_path in the configuration",
        )
