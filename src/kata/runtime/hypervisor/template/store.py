"""The directory of all templates: listing and removing them, failures remembered, the lock of who makes or removes.

The layout is described in `kata.runtime.hypervisor.template.template`.
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
#: Seconds for which a failed attempt is not repeated: each would double the time of a start.
_FAILURE_LIFETIME_S = 600.0


@dataclass(frozen=True)
class Listed:
    """A template as `kata factory status` shows it.

    Attributes:
        vm: what it is of, see `description`; empty if it is broken.
        size: bytes that its files take on the disk.
        used: when a machine last started from it, seconds since 1970.
        problem: why it cannot be used, or "".
    """

    key: str
    vm: Mapping[str, Any]
    size: int
    used: float
    problem: str


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
    deadline = time.monotonic() + timeout
    while (fd := _try_lock(root)) is None:
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"another process has been busy in {root} for {timeout:.0f} s")
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
