"""Building a template: boot a VM whose memory is a file, wait until its guest is ready, save it.

The guest's memory is anonymous while it boots, so that a full disk is a failed write and not a SIGBUS in the VMM. Only
pages that are not zero are written to the disk.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kata.errors import FailedPrecondition, KataError, NotFound, ResourceExhausted
from kata.linux.atomic_file import sync_directory
from kata.loop.off import off_loop
from kata.runtime.hypervisor import factory
from kata.runtime.hypervisor.base import VirtualMachine, VmPlan
from kata.runtime.hypervisor.template import store, template
from kata.runtime.hypervisor.template.template import Template

log = logging.getLogger(__name__)

#: The most recently used templates, which `prune` keeps: one for each VM size and configuration in use. One takes
#: 100 MB of disk; a host that needs one more than it keeps would make one, for ten seconds, at nearly every start.
MAX_TEMPLATES = 24
_SAVE_TIMEOUT_S = 30.0
#: A failed attempt that took longer than this many seconds is not repeated by every start.
_COSTLY_S = 1.0
#: Bytes that a template may take on disk: a guest's kernel and agent, and the kernel's 64 bytes for each page.
_ROOM = 256 << 20
_ROOM_PER_PAGE = 64
_PAGE = 4096
_CHUNK = 1 << 20

#: Waits until the guest is ready to be saved, and closes the VM's channels.
MakeReady = Callable[[VirtualMachine], Awaitable[None]]
Progress = Callable[[str], None]


def building(root: Path, sandbox_id: str) -> Path:
    """The directory in which a template is built for a sandbox. `ensure` leaves it only if its process is killed."""
    return root / f"{store.BUILDING}{sandbox_id}"


async def ensure(
    plan: VmPlan, root: Path, *, make_ready: MakeReady, progress: Progress, lock_timeout: float
) -> Template:
    """Open the template for VMs of `plan`, and build it if there is none; the caller closes it.

    Args:
        plan: with the kernel parameters of the template's boot, and the run directory to use for it.
        root: the directory of templates.
        make_ready: waits until the guest can be saved.
        progress: called with a sentence about each step that takes time.
        lock_timeout: seconds to wait for others that build a template.

    Raises:
        FailedPrecondition: an attempt has failed recently, or the template cannot be written.
        DeadlineExceeded: others have held the lock too long.
        ResourceExhausted: the disk has no room.
        KataError: the VM does not boot, or `make_ready` fails.
    """
    vm = template.description(plan)
    key = template.key_of(vm)
    try:
        return _open(root, key)
    except NotFound:
        pass
    if reason := store.recent_failure(root, key):
        raise FailedPrecondition(
            f"building a template failed recently: {reason}", hint="`kata factory destroy` clears the failure"
        )
    async with store.locked(root, lock_timeout):
        try:
            return _open(root, key)
        except NotFound:
            pass
        begin = time.monotonic()
        try:
            await _make(plan, root, key, vm, make_ready, progress)
        except KataError as error:
            if time.monotonic() - begin > _COSTLY_S:
                store.remember_failure(root, key, error.message)
            raise
        for removed in store.prune(root, MAX_TEMPLATES):
            log.info("removed template %s: others were used more recently", removed)
        return template.open_template(root, key)


def _open(root: Path, key: str) -> Template:
    """Open a template; a broken one is logged and counts as none.

    Raises:
        NotFound: there is none.
    """
    try:
        return template.open_template(root, key)
    except FailedPrecondition as error:
        log.warning("%s; it is built again", error.message)
        raise NotFound(error.message) from error


async def _make(
    plan: VmPlan, root: Path, key: str, vm: Mapping[str, Any], make_ready: MakeReady, progress: Progress
) -> None:
    """Build the template and move it into place. Hold the lock."""
    try:
        store.sweep(root)
        store.discard(root, key)
        store.require_room(root, _ROOM + plan.memory_mib * (1 << 20) // _PAGE * _ROOM_PER_PAGE)
        directory = building(root, plan.sandbox_id)
        directory.mkdir(mode=0o700)
        try:
            progress(
                f"building a template of {plan.memory_mib} MiB and {plan.vcpus} vCPU: later sandboxes start from it"
            )
            read_only = await _boot_and_save(plan, directory, make_ready, progress)
            template.write_manifest(directory, vm, read_only=read_only)
            os.rename(directory, root / key)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        sync_directory(root)
    except OSError as error:
        kind = ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else FailedPrecondition
        raise kind(f"cannot write a template to {root}: {(error.strerror or str(error)).lower()}") from error


async def _boot_and_save(plan: VmPlan, directory: Path, make_ready: MakeReady, progress: Progress) -> bool:
    """Boot and save a VM, and write the files `memory` and `state`; returns what `VirtualMachine.save` does."""
    memory = os.memfd_create("template-memory", os.MFD_CLOEXEC)
    state = os.memfd_create("template-state", os.MFD_CLOEXEC)
    try:
        os.ftruncate(memory, plan.memory_mib << 20)
        with tempfile.TemporaryDirectory(prefix="template-", dir=plan.run_dir) as run:
            share, root = Path(run) / "shared", Path(run) / "root"
            share.mkdir()
            root.mkdir()
            its_own = replace(
                plan, run_dir=Path(run), share_dir=plan.share_dir and share, root_dir=plan.root_dir and root
            )
            vm = factory.create(its_own, memory=memory)
            try:
                progress("booting a VM for it")
                await vm.start()
                await make_ready(vm)
                progress("saving it")
                read_only = await vm.save(state, _SAVE_TIMEOUT_S)
            finally:
                await vm.stop(0)
        size = await off_loop(_write, memory, state, directory)
        progress(f"the template takes {size / 1e6:.0f} MB")
        return read_only
    finally:
        os.close(state)
        await off_loop(os.close, memory)  # which frees all of it


def _write(memory: int, state: int, directory: Path) -> int:
    """Write the files `memory` and `state`; returns the memory's size on disk in bytes. Raises OSError."""
    size = _copy(memory, directory / template.MEMORY)
    # For a VMM of another user, which opens it by its descriptor. Only root may look into the directory.
    os.chmod(directory / template.MEMORY, 0o444)
    _copy(state, directory / template.STATE)
    return size


def _copy(source: int, target: Path) -> int:
    """Copy the pages of a file that are not zero to a new file, and sync it; returns their size in bytes.

    Raises:
        OSError: a file cannot be read or written, or `target` exists.
    """
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    written = 0
    try:
        end = os.fstat(source).st_size
        os.ftruncate(fd, end)
        position = 0
        while position < end:
            try:
                position = os.lseek(source, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            data = os.pread(source, min(_CHUNK, os.lseek(source, position, os.SEEK_HOLE) - position), position)
            for offset, run in _runs(data):
                written += len(run)
                while run:
                    count = os.pwrite(fd, run, position + offset)
                    run, offset = run[count:], offset + count
            position += len(data)
        os.fsync(fd)
    finally:
        os.close(fd)
    return written


def _runs(data: bytes) -> list[tuple[int, memoryview]]:
    """The runs of pages in `data` that are not zero: (offset, bytes)."""
    zero = bytes(_PAGE)
    view = memoryview(data)
    runs: list[tuple[int, memoryview]] = []
    begin: int | None = None
    for offset in range(0, len(data), _PAGE):
        empty = view[offset : offset + _PAGE] == zero[: len(data) - offset]
        if begin is None and not empty:
            begin = offset
        elif begin is not None and empty:
            runs.append((begin, view[begin:offset]))
            begin = None
    if begin is not None:
        runs.append((begin, view[begin:]))
    return runs
