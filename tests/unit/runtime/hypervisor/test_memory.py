"""Memory of guests in anonymous files: who gets which copy, and that nobody can write to one that is shared."""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Thread

import pytest

from kata.runtime.hypervisor.memory import HELD, SealedCopy, copy_memory, memory_to_share
from tests.support.writing import ways_to_write

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[int]:
    """A saved memory of two pages and a lot of holes."""
    fd = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, SIZE)
        os.pwrite(fd, b"first", 0)
        os.pwrite(fd, b"later", 40 * MIB)
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where VMs have their directories."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@contextmanager
def held(saved: int, run: Path, name: str) -> Iterator[SealedCopy]:
    """What a process does that runs a VM."""
    (run / name).mkdir(exist_ok=True)
    with closing(SealedCopy(saved, run / name)) as copy:
        copy.complete()
        yield copy


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def test_memory_to_share_is_a_copy_that_takes_no_more_than_there_is(saved: int) -> None:
    memory = memory_to_share(64)
    try:
        copy_memory(saved, memory)
        assert os.fstat(memory).st_size == SIZE
        assert os.fstat(memory).st_blocks * 512 < MIB
        assert (os.pread(memory, 5, 0), os.pread(memory, 5, 40 * MIB)) == (b"first", b"later")
        os.pwrite(memory, b"other", 0)
        assert os.pread(saved, 5, 0) == b"first"
    finally:
        os.close(memory)


def test_memory_of_a_vm_that_boots_is_empty() -> None:
    memory = memory_to_share(1)
    try:
        assert (os.fstat(memory).st_size, os.fstat(memory).st_blocks) == (MIB, 0)
    finally:
        os.close(memory)


class TestSealedCopy:
    def test_it_is_what_was_saved_and_takes_no_more(self, saved: int, run: Path) -> None:
        with held(saved, run, "one") as copy:
            info = os.fstat(copy.memory)
            assert (info.st_size, info.st_blocks * 512) == (SIZE, 2 * mmap.PAGESIZE)
            assert (os.pread(copy.memory, 5, 0), os.pread(copy.memory, 5, 40 * MIB)) == (b"first", b"later")

    @pytest.mark.parametrize("name", ways_to_write)
    def test_nobody_writes_to_it(self, saved: int, run: Path, name: str) -> None:
        """Neither by the descriptor that made it, nor by one that QEMU opens, as it does, for writing."""
        with held(saved, run, "one") as copy:
            opened = os.open(f"/proc/self/fd/{copy.memory}", os.O_RDWR)
            try:
                for fd in (copy.memory, opened):
                    with pytest.raises(PermissionError):
                        ways_to_write[name](fd)
            finally:
                os.close(opened)
            assert os.pread(copy.memory, 5, 0) == b"first"

    def test_qemu_maps_it_privately(self, saved: int, run: Path) -> None:
        with held(saved, run, "one") as copy:
            opened = os.open(f"/proc/self/fd/{copy.memory}", os.O_RDWR)
            try:
                with mmap.mmap(opened, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
                    mapped[:5] = b"guest"
            finally:
                os.close(opened)
            assert os.pread(copy.memory, 5, 0) == b"first"

    def test_all_share_one_until_the_last_has_ended(self, saved: int, run: Path) -> None:
        with ExitStack() as second:
            with held(saved, run, "one") as first:
                number = inode(first.memory)
                other = second.enter_context(held(saved, run, "two"))
                assert inode(other.memory) == number
            with held(saved, run, "three") as third:
                assert inode(third.memory) == number, "the first has ended, the second has it"
        with held(saved, run, "four") as fourth:
            assert inode(fourth.memory) != number
        assert not list(run.glob(f"*/{HELD}"))

    def test_another_saved_memory_has_another_copy(self, saved: int, run: Path, tmp_path: Path) -> None:
        other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
        try:
            os.ftruncate(other, SIZE)
            with held(saved, run, "one") as first, held(other, run, "two") as second:
                assert inode(first.memory) != inode(second.memory)
                assert os.pread(second.memory, 5, 0) == bytes(5)
        finally:
            os.close(other)

    def test_what_was_changed_since_is_copied_anew(self, saved: int, run: Path) -> None:
        with held(saved, run, "one") as first:
            os.pwrite(saved, b"FIRST", 0)
            with held(saved, run, "two") as second:
                assert inode(first.memory) != inode(second.memory)
                assert os.pread(second.memory, 5, 0) == b"FIRST"

    def test_those_that_start_at_once_make_one(self, saved: int, run: Path) -> None:
        inodes = []
        with ExitStack() as stack:
            copies = []

            def start(name: str) -> None:
                # Each process opens the file by itself: the lock is that of the open file.
                own = os.open(f"/proc/self/fd/{saved}", os.O_RDWR)
                stack.callback(os.close, own)
                (run / name).mkdir()
                copy = SealedCopy(own, run / name)
                copy.complete()
                copies.append(copy)

            threads = [Thread(target=start, args=(f"vm{number}",)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            inodes = [inode(copy.memory) for copy in copies]
            for copy in copies:
                copy.close()
        assert (len(inodes), len(set(inodes))) == (8, 1)

    def test_one_that_dies_while_it_copies_holds_up_nobody(self, saved: int, run: Path) -> None:
        own = os.open(f"/proc/self/fd/{saved}", os.O_RDWR)
        (run / "dead").mkdir()
        dead = SealedCopy(own, run / "dead")
        os.close(own)  # which is what is left of it with its process
        with held(saved, run, "one") as copy:
            assert inode(copy.memory) != inode(dead.memory)
        os.close(dead.memory)

    @pytest.mark.parametrize("what", ["unsealed", "another name", "another size", "a process that has ended", "a file"])
    def test_what_is_none_is_not_taken_for_one(self, saved: int, run: Path, tmp_path: Path, what: str) -> None:
        with held(saved, run, "real") as real:
            name = os.readlink(f"/proc/self/fd/{real.memory}").removeprefix("/memfd:").removesuffix(" (deleted)")
        fake = os.memfd_create("template-1-2-3" if what == "another name" else name, os.MFD_ALLOW_SEALING)
        os.ftruncate(fake, MIB if what == "another size" else SIZE)
        if what != "unsealed":
            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(fake, fcntl.F_ADD_SEALS, seals)
        target = f"/proc/{os.getpid()}/fd/{fake}"
        if what == "a process that has ended":
            target = f"/proc/{_ended()}/fd/{fake}"
        elif what == "a file":
            (tmp_path / f"memfd:{name} (deleted)").touch()
            target = str(tmp_path / f"memfd:{name} (deleted)")
        (run / "fake").mkdir()
        (run / "fake" / HELD).symlink_to(target)
        try:
            with held(saved, run, "one") as copy:
                assert inode(copy.memory) != inode(fake)
                assert os.pread(copy.memory, 5, 0) == b"first"
        finally:
            os.close(fake)

    def test_nothing_stays_open(self, saved: int, run: Path) -> None:
        before = len(os.listdir("/proc/self/fd"))
        with held(saved, run, "one"), held(saved, run, "two"):
            pass
        assert len(os.listdir("/proc/self/fd")) == before


def _ended() -> int:
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-IS", "-c", ""])
    os.waitpid(pid, 0)
    return pid
