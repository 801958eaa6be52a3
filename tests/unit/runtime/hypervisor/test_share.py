"""The programs that serve the shared tree: their arguments, their end of the connection, the memory they share."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from socket import MSG_WAITALL

import pytest

from kata.errors import NotFound
from kata.runtime.config.loader import load
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.qemu import share
from kata.runtime.hypervisor.qemu.share import (
    HELPER_FILTER,
    ShareHelper,
    connection,
    find_helper,
    server_command,
    server_of,
)

MIB = 1 << 20
#: QEMU's number of the request.
_MKDIR = 5


def test_over_9p(make_plan: Callable[..., VmPlan]) -> None:
    plan = make_plan(share_dir=Path("/s"))
    command = server_command(plan, Path("/helper"), 7, 8)
    assert command[command.index("--") + 1 :] == ["/helper", "--nodaemon", "--path", "/s", "--fd", "7"]
    assert f"{plan.programs}/setpriv" in command
    assert "--seccomp-filter=/proc/self/fd/8" in command
    assert "/r" in server_command(plan, Path("/helper"), 7, 8, Path("/r"))
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


@pytest.fixture
def programs() -> Path:
    """Of the guest image."""
    programs = load().config.hypervisor.host_programs
    if os.geteuid() or not (programs / "setpriv").exists():
        pytest.skip("needs root and a guest image")
    return programs


def test_the_filter_answers_capset_and_nothing_else(programs: Path) -> None:
    """Under it, a process that gives up its capabilities is told that it has, and keeps them."""
    filter_ = os.memfd_create("filter")
    os.pwrite(filter_, HELPER_FILTER, 0)
    loader = [str(programs / "ld-linux-x86-64.so.2"), "--library-path", str(programs)]
    setpriv = [*loader, str(programs / "setpriv"), "--nnp", f"--seccomp-filter=/proc/self/fd/{filter_}"]
    # --inh-caps is capset(2); --bounding-set is prctl(2).
    inner = [
        "setpriv",
        "--inh-caps=+chown",
        "--bounding-set=-mknod",
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


def test_the_9p_helper_creates_what_anyone_owns_again_and_again(
    make_plan: Callable[..., VmPlan], programs: Path, tmp_path: Path
) -> None:
    """Spoken to as QEMU does (hw/9pfs/9p-proxy.h): without the filter it ended at the second directory."""
    plan = make_plan(share_dir=tmp_path, programs=programs)
    helper = find_helper()
    if helper is None:
        pytest.skip("needs QEMU's 9p helper")
    tmp_path.chmod(0o755)
    ours, theirs = connection(plan)
    with ours:
        with theirs:
            served = ShareHelper(plan, helper, theirs.fileno(), output=2)
        try:
            for number in range(1000):
                owner = ((0, 50), (1000, 1000), (0, 0), (1000, 50), (0, 51))[number % 5]
                name = f"/{number}".encode()
                body = struct.pack("<IIH", *owner, len(name)) + name + struct.pack("<I", 0o755)
                ours.sendall(struct.pack("<II", _MKDIR, len(body)) + body)
                assert ours.recv(12, MSG_WAITALL) == struct.pack("<IIi", 0, 4, 0)
                found = os.stat(f"{tmp_path}/{number}")
                assert (found.st_uid, found.st_gid) == owner
        finally:
            served.stop()
