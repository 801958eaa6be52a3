"""The programs that serve the shared tree: their arguments, their end of the connection, the memory they share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.qemu import share
from kata.runtime.hypervisor.qemu.process import memory_to_share
from kata.runtime.hypervisor.qemu.share import connection, server_command, server_of

MIB = 1 << 20


def test_over_9p(make_plan: Callable[..., VmPlan]) -> None:
    plan = make_plan(share_dir=Path("/s"))
    assert server_command(plan, Path("/helper"), 7) == ["/helper", "--nodaemon", "--path", "/s", "--fd", "7"]
    ours, theirs = connection(plan)
    with ours, theirs:
        ours.send(b"x")
        assert theirs.recv(1) == b"x"


def test_over_virtio_fs(make_plan: Callable[..., VmPlan]) -> None:
    options = ("--thread-pool-size=1", "--debug")
    plan = make_plan(share_dir=Path("/s"), share_fs="virtio-fs", virtiofsd=Path("/daemon"), virtiofsd_args=options)
    command = server_command(plan, Path("/daemon"), 7)
    assert command[:3] == ["/daemon", "-f", "--fd=7"]
    assert command[-len(options) :] == list(options), "the administrator's come last and win"
    assert {"sandbox=chroot", "source=/s", "xattr", "cache=auto"} <= set(command)
    assert "cache=none" in server_command(replace(plan, virtiofsd_cache="never"), Path("/daemon"), 7)
    ours, listener = connection(plan)
    with ours, listener, listener.accept()[0] as accepted:
        ours.send(b"x")
        assert accepted.recv(1) == b"x"


def test_who_serves(make_plan: Callable[..., VmPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "virtfs-proxy-helper"
    monkeypatch.setattr(share, "_HELPERS", (tmp_path / "elsewhere", helper))
    over_9p = make_plan(share_dir=Path("/s"))
    assert server_of(over_9p) is None, "QEMU itself"
    helper.touch(mode=0o755)
    assert server_of(over_9p) == helper
    assert server_of(make_plan()) is None, "there is nothing to serve"
    assert server_of(replace(over_9p, share_fs="virtio-fs", virtiofsd=Path("/daemon"))) == Path("/daemon")


def test_memory_to_share_is_a_copy_that_takes_no_more_than_there_is(tmp_path: Path) -> None:
    saved = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)
    memory = -1
    try:
        os.ftruncate(saved, 64 * MIB)
        os.pwrite(saved, b"first", 0)
        os.pwrite(saved, b"later", 40 * MIB)
        memory = memory_to_share(64, saved)
        assert os.fstat(memory).st_size == 64 * MIB
        assert os.fstat(memory).st_blocks * 512 < MIB
        assert (os.pread(memory, 5, 0), os.pread(memory, 5, 40 * MIB)) == (b"first", b"later")
        os.pwrite(memory, b"other", 0)
        assert os.pread(saved, 5, 0) == b"first"
    finally:
        for fd in (saved, memory):
            if fd >= 0:
                os.close(fd)


def test_memory_of_a_machine_that_boots_is_empty() -> None:
    memory = memory_to_share(1, None)
    try:
        assert (os.fstat(memory).st_size, os.fstat(memory).st_blocks) == (MIB, 0)
    finally:
        os.close(memory)
