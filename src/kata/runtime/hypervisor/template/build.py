"""How a template is made: boot a machine whose memory is a file, wait until its guest is ready, save it.

The guest's memory is anonymous while it boots, so that a full disk is an error of a write and not the death of QEMU,
and no page is written to the disk that ends up unused. What is kept is what is not zero.
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
from kata.runtime.hypervisor import factory
from kata.runtime.hypervisor.base import VirtualMachine, VmPlan
from kata.runtime.hypervisor.template import store, template
from kata.runtime.hypervisor.template.template import Template

log = logging.getLogger(__name__)

#: Templates that stay, the most recently used: one for each size of machine and each configuration in use.
KEEP = 8
_SAVE_TIMEOUT_S = 30.0
#: Seconds from which on a failed attempt costs a start too much to be repeated at each.
_COSTLY_S = 1.0
#: Bytes that a template may take on the disk: a guest's kernel and agent, and the kernel's 64 bytes for each page.
_ROOM = 256 << 20
_ROOM_PER_PAGE = 64
_PAGE = 4096
_CHUNK = 1 << 20

#: Waits until the guest is ready to be saved, and lets go of the machine's channels.
MakeReady = Callable[[VirtualMachine], Awaitable[None]]
Progress = Callable[[str], None]


def building(root: Path, sandbox_id: str) -> Path:
    """Where a template is made for a sandbox; only a kill can leave it there when `ensure` has returned."""
    return root / f"{store.BUILDING}{sandbox_id}"


async def ensure(
    plan: VmPlan, root: Path, *, make_ready: MakeReady, progress: Progress, lock_timeout: float
) -> Template:
    """The template for machines of `plan`, made if there is none; the caller closes it.

    Args:
        plan: the kernel parameters are those of the template's boot; its run directory is used for it.
        root: where templates are kept.
        progress: told in one sentence each what takes time.
        lock_timeout: seconds to wait for others who are making a template.

    Raises:
        KataError: there is none and none could be made.
    """
    vm = template.description(plan)
    key = template.key_of(vm)
    try:
        return _open(root, key)
    except NotFound:
        pass
    if reason := store.recent_failure(root, key):
        raise FailedPrecondition(
            f"making a template has just failed: {reason}", hint="`kata factory destroy` forgets the failure"
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
        for removed in store.prune(root, KEEP):
            log.info("removed template %s: others were used more recently", removed)
        return template.open_template(root, key)


def _open(root: Path, key: str) -> Template:
    """Open a template; one that is broken is as good as none, and is reported."""
    try:
        return template.open_template(root, key)
    except FailedPrecondition as error:
        log.warning("%s; it is made anew", error.message)
        raise NotFound(error.message) from error


async def _make(
    plan: VmPlan, root: Path, key: str, vm: Mapping[str, Any], make_ready: MakeReady, progress: Progress
) -> None:
    """Put the template in its place, in whose way nothing is afterwards. Hold the lock."""
    try:
        store.sweep(root)
        store.discard(root, key)
        store.require_room(root, _ROOM + plan.memory_mib * (1 << 20) // _PAGE * _ROOM_PER_PAGE)
        directory = building(root, plan.sandbox_id)
        directory.mkdir(mode=0o700)
        try:
            progress(f"making a template of {plan.memory_mib} MiB and {plan.vcpus} vCPU: later sandboxes start from it")
            await _boot_and_save(plan, directory, make_ready, progress)
            template.write_manifest(directory, vm)
            os.rename(directory, root / key)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        sync_directory(root)
    except OSError as error:
        kind = ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else FailedPrecondition
        raise kind(f"a template cannot be written to {root}: {(error.strerror or str(error)).lower()}") from error


async def _boot_and_save(plan: VmPlan, directory: Path, make_ready: MakeReady, progress: Progress) -> None:
    """Boot, save, and write the files `memory` and `state`."""
    memory = os.memfd_create("template-memory", os.MFD_CLOEXEC)
    state = os.memfd_create("template-state", os.MFD_CLOEXEC)
    try:
        os.ftruncate(memory, plan.memory_mib << 20)
        with tempfile.TemporaryDirectory(prefix="template-", dir=plan.run_dir) as run:
            share = Path(run) / "shared"
            share.mkdir()
            vm = factory.create(replace(plan, run_dir=Path(run), share_dir=plan.share_dir and share), memory=memory)
            try:
                progress("booting a VM for it")
                await vm.start()
                await make_ready(vm)
                progress("saving it")
                await vm.save(state, _SAVE_TIMEOUT_S)
            finally:
                await vm.stop(0)
        size = _copy(memory, directory / template.MEMORY)
        _copy(state, directory / template.STATE)
        progress(f"the template takes {size / 1e6:.0f} MB")
    finally:
        os.close(memory)
        os.close(state)


def _copy(source: int, target: Path) -> int:
    """Write all pages of a file that are not zero to a new one, durably; returns their size in bytes."""
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
    """The parts of `data` that are not zero, in whole pages: (offset, bytes)."""
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
