"""The programs that serve the shared tree: their arguments, their end of the connection, the memory they share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kata.errors import NotFound
from kata.runtime.config.settings import HypervisorConfig
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.qemu import share
from kata.runtime.hypervisor.qemu.process import copy_memory, memory_to_share
from kata.runtime.hypervisor.qemu.share import KEEP_CAPABILITIES, connection, server_command, server_of

MIB = 1 << 20


def test_over_9p(make_plan: Callable[..., VmPlan]) -> None:
    plan = make_plan(share_dir=Path("/s"))
    command = server_command(plan, Path("/helper"), 7, 8)
    assert command[command.index("--") + 1 :] == ["/helper", "--nodaemon", "--path", "/s", "--fd", "7"]
    assert f"{plan.programs}/setpriv" in command
    assert "--seccomp-filter=/proc/self/fd/8" in command
    ours, theirs = connection(plan)
    with ours, theirs:
        ours.send(b"x")
        assert theirs.recv(1) == b"x"


def test_over_virtio_fs(make_plan: Callable[..., VmPlan]) -> None:
    options = ("--thread-pool-size=1", "--log-level=debug")
    plan = make_plan(share_dir=Path("/s"), share_fs="virtio-fs", virtiofsd_args=options)
    program = plan.programs / "virtiofsd"
    command = server_command(plan, program, 7)
    assert command[0] == f"{plan.programs}/ld-linux-x86-64.so.2"
    assert command[command.index("virtiofsd") + 1 :][:3] == [str(program), "--fd=7", "--shared-dir=/s"]
    assert command[-len(options) :] == list(options), "the administrator's come last and win"
    assert {"--sandbox=chroot", "--xattr", "--inode-file-handles=prefer", "--cache=auto"} <= set(command)
    assert "--cache=never" in server_command(replace(plan, virtiofsd_cache="never"), program, 7)
    another = replace(plan, virtiofsd=Path("/daemon"))
    assert server_command(another, Path("/daemon"), 7)[:2] == ["/daemon", "--fd=7"]
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
    over_virtio_fs = replace(over_9p, share_fs="virtio-fs")
    assert server_of(over_virtio_fs) == over_9p.programs / "virtiofsd"
    another = replace(over_virtio_fs, virtiofsd=helper, programs=Path("/nowhere"))
    assert server_of(another) == helper
    for plan, said in (
        (replace(over_9p, programs=tmp_path), "setpriv of the guest image: "),
        (replace(over_virtio_fs, programs=tmp_path), "virtiofsd of the guest image: "),
        (replace(over_virtio_fs, virtiofsd=Path("/daemon")), "virtiofsd: /daemon is not an executable file"),
    ):
        with pytest.raises(NotFound, match=said) as caught:
            server_of(plan)
        assert caught.value.hint


def test_the_filter_answers_capset_and_nothing_else() -> None:
    """Under it, a process that gives up its capabilities is told that it has, and keeps them."""
    programs = HypervisorConfig().host_programs
    if not (programs / "setpriv").exists() or os.geteuid():
        pytest.skip("needs a guest image and root")
    filter_ = os.memfd_create("filter")
    os.pwrite(filter_, KEEP_CAPABILITIES, 0)
    loader = [str(programs / "ld-linux-x86-64.so.2"), "--library-path", str(programs)]
    setpriv = [*loader, str(programs / "setpriv"), "--nnp", f"--seccomp-filter=/proc/self/fd/{filter_}"]
    # --inh-caps is capset(2); --bounding-set is prctl(2).
    inner = [
        "setpriv",
        "--inh-caps=+chown",
        "--bounding-set=-mknod",
        "--",
        "grep",
        "-E",
        "CapInh|CapBnd",
        "/proc/self/status",
    ]
    try:
        done = subprocess.run([*setpriv, *inner], pass_fds=[filter_], check=True, capture_output=True, text=True)
    finally:
        os.close(filter_)
    found = dict(line.split(":\t") for line in done.stdout.splitlines())
    assert int(found["CapInh"], 16) == 0
    assert not int(found["CapBnd"], 16) & 1 << 27


def test_memory_to_share_is_a_copy_that_takes_no_more_than_there_is(tmp_path: Path) -> None:
    saved = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)
    memory = -1
    try:
        os.ftruncate(saved, 64 * MIB)
        os.pwrite(saved, b"first", 0)
        os.pwrite(saved, b"later", 40 * MIB)
        memory = memory_to_share(64)
        copy_memory(saved, memory)
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
    memory = memory_to_share(1)
    try:
        assert (os.fstat(memory).st_size, os.fstat(memory).st_blocks) == (MIB, 0)
    finally:
        os.close(memory)
