from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kata.linux import mountinfo, namespaces

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_pinned_namespaces_live_on_and_the_caller_stays(tmp_path: Path) -> None:
    home = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("uts", "ipc")}
    name = socket.gethostname()
    targets = {kind: str(tmp_path / kind) for kind in ("uts", "ipc")}
    namespaces.make_pinned(targets, lambda: socket.sethostname("elsewhere"))
    try:
        assert {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in home} == home
        assert socket.gethostname() == name
        back, there = os.open("/proc/self/ns/uts", os.O_RDONLY), os.open(targets["uts"], os.O_RDONLY)
        try:
            namespaces.setns(there, namespaces.CLONE_NEWUTS)
            assert socket.gethostname() == "elsewhere"
            namespaces.setns(back, namespaces.CLONE_NEWUTS)
        finally:
            os.close(back)
            os.close(there)
    finally:
        for target in targets.values():
            namespaces.unpin(target)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_pinned(tmp_path: Path) -> None:
    home = os.readlink("/proc/self/ns/uts")
    targets = {"ipc": str(tmp_path / "ipc"), "uts": str(tmp_path / "none/uts")}
    with pytest.raises(FileNotFoundError):
        namespaces.make_pinned(targets)
    assert os.readlink("/proc/self/ns/uts") == home
    assert mountinfo.points_below(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_new_namespaces_for_a_block() -> None:
    kinds = ("net", "ipc", "uts", "pid_for_children")
    home = [os.readlink(f"/proc/thread-self/ns/{kind}") for kind in kinds]
    with namespaces.inside_new("net", "ipc", "uts", "pid"):
        inside = [os.readlink(f"/proc/thread-self/ns/{kind}") for kind in kinds[:3]]
    assert not set(inside) & set(home)
    assert [os.readlink(f"/proc/thread-self/ns/{kind}") for kind in kinds] == home
    with pytest.raises(RuntimeError), namespaces.inside_new("net"):
        raise RuntimeError
    assert [os.readlink(f"/proc/thread-self/ns/{kind}") for kind in kinds] == home


def test_another_user_is_root_in_a_namespace() -> None:
    # After a change of user /proc/self belongs to root, unlike that of whoever has logged in: PR_SET_DUMPABLE.
    script = """
import ctypes, os
from kata.linux.namespaces import become_root
os.setgroups([]), os.setresgid(7, 7, 7), os.setresuid(8, 8, 8), ctypes.CDLL(None).prctl(4, 1)
become_root()
print(os.getuid(), os.getgid(), *open("/proc/self/uid_map").read().split())
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.split() == ["0", "0", "0", "8", "1"]
