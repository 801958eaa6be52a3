"""QEMU's jail from inside: another program in QEMU's place, with QEMU's descriptors, tries to get out."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata.runtime.config.loader import load
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.qemu import jail, libraries, process
from kata.runtime.hypervisor.qemu.process import QemuProcess
from kata.runtime.hypervisor.qemu.vm import QemuVm
from tests.support import escapes
from tests.vm.test_hypervisor import tiny_kernel

QEMU = Path("/usr/bin/qemu-system-x86_64")
PYTHON = Path(os.path.realpath(sys.executable))
IDS = range(1_900_000_000, 1_900_065_536)

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not QEMU.exists(), reason="needs qemu-system-x86_64"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv"),
]


@pytest.fixture
def plan(tmp_path: Path) -> VmPlan:
    """A VM of a kernel of 40 instructions, in a jail."""
    kernel, run = tmp_path / "kernel", tmp_path / "run"
    kernel.write_bytes(tiny_kernel("hello\n", bytes.fromhex("fa f4 eb fd")))
    run.mkdir()
    values: dict[str, Any] = {"sandbox_id": "test", "run_dir": run, "vmm": QEMU, "kernel": kernel, "initrd": kernel}
    return VmPlan(
        **values,
        accelerator="tcg",
        channels=("kata.rpc",),
        programs=load().config.hypervisor.host_programs,
        jail_uids=IDS,
    )


@pytest.fixture
def other() -> Iterator[int]:
    """A process of root's that nothing may reach."""
    with subprocess.Popen(["sleep", "600"]) as sleeping:
        yield sleeping.pid
        sleeping.kill()


def _with_python(root: jail.Root) -> jail.Root:
    """The root, and what Python needs to run in it."""
    library = Path(os.__file__).parent
    (ctypes,) = library.glob("lib-dynload/_ctypes.*.so")
    loader = libraries.loader_of(PYTHON)
    needed = libraries.parse(ctypes, libraries._ask(loader, ctypes))
    return replace(
        root, files=tuple(dict.fromkeys((*root.files, *needed))), directories=(*root.directories, str(library))
    )


def _attempts(plan: VmPlan, other: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What becomes of each attempt, by a program that `QemuProcess` runs in QEMU's place."""
    program = Path(escapes.__file__).read_text()
    command = [str(PYTHON), "-IS", "-c", program, str(other), str(plan.run_dir)]
    root_of = jail.root_of
    monkeypatch.setattr(process, "command_line", lambda *_args, **_options: command)
    monkeypatch.setattr(jail, "root_of", lambda *arguments: _with_python(root_of(*arguments)))
    started = QemuProcess(replace(plan, vmm=PYTHON))
    try:
        with os.fdopen(os.dup(started.output)) as output:
            said = output.read()
        assert started.popen.wait(30) == 0, said
    finally:
        started.kill()
    found: dict[str, str] = json.loads(said)
    assert found.keys() == escapes.ATTEMPTS.keys()
    return found


def test_no_attempt_to_get_out_succeeds(plan: VmPlan, other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _attempts(plan, other, monkeypatch)
    assert len(found) > 90
    assert [name for name, error in found.items() if not error] == []
    assert "" not in found.values()
    assert found["read /etc/shadow"] == found["list its own sandbox's directory"] == "ENOENT"
    assert found["a TCP socket"] == found["ptrace itself"] == found["a new user namespace"] == "EPERM"


def test_without_a_jail_some_do(plan: VmPlan, other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same program without a jail: that the attempts are real."""
    found = _attempts(replace(plan, jail_uids=range(0)), other, monkeypatch)
    done = {name for name, error in found.items() if not error}
    assert {"read /etc/shadow", "create a file in /etc", "list /root", "go beyond the root"} <= done
    assert {"a TCP socket", "ptrace itself", "a new user namespace", "add_key"} <= done


async def test_a_vm_in_it(plan: VmPlan, tmp_path: Path) -> None:
    """QEMU itself: its ids, its root, and that nothing is left of them."""
    vm = QemuVm(plan)
    await vm.start()
    of_qemu = Path(f"/proc/{vm.pid}")
    status = dict(line.split(":\t", 1) for line in (of_qemu / "status").read_text().splitlines())
    uids, gids = set(status["Uid"].split()), set(status["Gid"].split())
    assert uids == gids
    assert len(uids) == 1
    assert int(*uids) in IDS
    assert status["Groups"].split() == []
    assert [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 5
    assert (status["NoNewPrivs"], status["Seccomp"], status["Seccomp_filters"]) == ("1", "2", "2")
    assert set(os.listdir(of_qemu / "root")) <= {
        "dev",
        "etc",
        "filter",
        "lib",
        "lib64",
        "proc",
        "usr",
        *tmp_path.parts,
        "var",
    }
    assert os.listdir(of_qemu / "root/etc") == ["ld.so.cache"]
    limits = {line[:25].strip(): line[26:].split()[0] for line in (of_qemu / "limits").read_text().splitlines()[1:]}
    assert (limits["Max core file size"], limits["Max locked memory"]) == ("0", "0")
    for name in ("mnt", "net", "ipc", "uts", "pid", "cgroup"):
        assert os.readlink(of_qemu / "ns" / name) != os.readlink(f"/proc/self/ns/{name}"), name
    await vm.stop()
    assert not any("jail" in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


async def test_two_vms_have_two_ids(plan: VmPlan) -> None:
    one, two = QemuVm(plan), QemuVm(replace(plan, sandbox_id="two"))
    await asyncio.gather(one.start(), two.start())
    ids = {os.stat(f"/proc/{vm.pid}").st_uid for vm in (one, two)}
    assert len(ids) == 2
    assert all(number in IDS for number in ids)
    await asyncio.gather(one.stop(), two.stop())
