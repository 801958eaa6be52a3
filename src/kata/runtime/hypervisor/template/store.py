"""The directory of all templates: listing and removing them, recorded failures, the lock of builders and removers.

Its layout is described in `kata.runtime.hypervisor.template.template`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata.errors import DeadlineExceeded, FailedPrecondition, KataError, ResourceExhausted
from kata.linux import lock
from kata.runtime.hypervisor.template.template import MEMORY, open_template, read_manifest

BUILDING = ".building-"

_REMOVED = ".removed-"
_FAILED = ".failed-"
_LOCK = ".lock"
_LOCK_POLL_S = 0.05
#: Seconds for which a failed attempt is not repeated: it would double the time of each start.
_FAILURE_LIFETIME_S = 600.0


@dataclass(frozen=True)
class Listed:
    """A template as `kata factory status` shows it.

    Attributes:
        key: its name.
        vm: the VM's `description`; empty if the template is broken.
        size: bytes that its files take on disk.
        used: when a VM was last restored from it, in seconds since 1970.
        problem: why it cannot be used, or "".
    """

    key: str
    vm: Mapping[str, Any]
    size: int
    used: float
    problem: str

    @property
    def domain(self) -> str:
        """Whose VMs are restored from it: those of one `template_domain`."""
        return str(self.vm.get("domain", ""))


def discard(root: Path, key: str, memory: int | None = None) -> None:
    """Remove a template; VMs that were restored from it run on.

    Args:
        root: the directory of templates.
        key: the template's name.
        memory: descriptor of the memory of the template that is meant: another one with this key stays.

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
        # Renamed first, so that nobody finds half a template.
        doomed = Path(tempfile.mkdtemp(prefix=_REMOVED, dir=root))
        if directory.exists():
            directory.rename(doomed / key)
        shutil.rmtree(doomed, ignore_errors=True)
    except OSError as error:
        raise FailedPrecondition(f"cannot remove template {key}: {error.strerror}") from error


def list_templates(root: Path) -> list[Listed]:
    """All templates, the most recently used first, broken ones included."""
    found = []
    for directory in root.iterdir() if root.is_dir() else ():
        if directory.name.startswith(".") or not directory.is_dir():
            continue
        vm: Mapping[str, Any] = {}
        problem = ""
        try:
            with open_template(root, directory.name):
                vm = read_manifest(directory)["vm"]
        except KataError as error:
            problem = error.message
        try:
            size = sum(path.stat().st_blocks * 512 for path in directory.iterdir())
            found.append(Listed(directory.name, vm, size, directory.stat().st_mtime, problem))
        except FileNotFoundError:
            continue  # removed meanwhile
    return sorted(found, key=lambda template: template.used, reverse=True)


def prune(root: Path, keep: int) -> list[str]:
    """Remove broken templates, and all but `keep` of the others; returns their keys. Hold the lock.

    The most recently used stay, of each domain as many as of any other, as far as it has so many: a domain that uses
    many kinds costs the others none of theirs.

    Raises:
        FailedPrecondition: one cannot be removed.
    """
    listed = list_templates(root)
    rank: dict[str, int] = {}
    ranked = []
    for number, template in enumerate(one for one in listed if not one.problem):
        rank[template.domain] = rank.get(template.domain, -1) + 1
        ranked.append((rank[template.domain], number, template.key))
    kept = {key for _, _, key in sorted(ranked)[:keep]}
    removed = [template.key for template in listed if template.key not in kept]
    for key in removed:
        discard(root, key)
    return removed


def sweep(root: Path) -> None:
    """Remove what builders and removers that died have left, and old failures. Hold the lock."""
    for path in root.iterdir():
        if path.name.startswith((BUILDING, _REMOVED)):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(_FAILED) and _age(path) > _FAILURE_LIFETIME_S:
            path.unlink(missing_ok=True)


def destroy(root: Path) -> list[str]:
    """Remove all templates, remains and recorded failures; returns the templates' keys. Hold the lock.

    Raises:
        FailedPrecondition: one cannot be removed.
    """
    removed = prune(root, 0)
    sweep(root)
    for path in _failures(root):
        path.unlink(missing_ok=True)
    return removed


def remember_failure(root: Path, key: str, reason: str) -> None:
    """Record a failed attempt, so that the next starts do not repeat it. Best effort."""
    try:
        (root / f"{_FAILED}{key}").write_text(reason, encoding="utf-8")
    except OSError:
        return


def recent_failure(root: Path, key: str) -> str | None:
    """Why a recent attempt failed; None if none did."""
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
    """Hold the lock of those that build and remove templates.

    Args:
        root: the directory of templates; created if it does not exist.
        timeout: seconds.

    Raises:
        DeadlineExceeded: another process held it for `timeout` seconds.
        FailedPrecondition: the directory cannot be created or written.
    """
    deadline = time.monotonic() + timeout
    while (fd := _try_lock(root)) is None:
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"another process has held the lock of {root} for {timeout:.0f} s")
        await asyncio.sleep(_LOCK_POLL_S)
    try:
        yield
    finally:
        os.close(fd)


def _try_lock(root: Path) -> int | None:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return lock.acquire(root / _LOCK)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot keep templates in {root}: {error.strerror}", hint="set template_path in the configuration"
        ) from error


def require_room(root: Path, size: int) -> None:
    """Check that the disk has `size` bytes left.

    Raises:
        ResourceExhausted: it has fewer.
    """
    info = os.statvfs(root)
    if info.f_bavail * info.f_frsize < size:
        raise ResourceExhausted(
            f"{root} has {info.f_bavail * info.f_frsize >> 20} MiB left; a template may need {size >> 20} MiB",
            hint="free some space, or set template_path in the configuration",
        )
