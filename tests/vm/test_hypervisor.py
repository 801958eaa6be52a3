"""QEMU for real: VMs that run, hang, flood and die, and what is left of them afterwards, which is nothing.

Most guests here are a kernel of 40 instructions, made below: it boots in a tenth of a second and misbehaves on demand.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kata.errors import FailedPrecondition, KataError, Unavailable, VmLaunchError
from kata.osbuilder import store
from kata.protocols import agent_pb2, health_pb2, shared_tree
from kata.runtime.config.loader import load
from kata.runtime.hypervisor import trial_boot
from kata.runtime.hypervisor.base import MAX_EMPTY_DISKS, MIN_MEMORY_MIB, VmPlan
from kata.runtime.hypervisor.console import MAX_LOG_BYTES
from kata.runtime.hypervisor.qemu import share
from kata.runtime.hypervisor.qemu.vm import QemuVm
from kata.runtime.storage.container_files import GUEST_SHARED
from kata.ttrpc import Client
from kata.ttrpc.typed import Stub
from tests.support.descriptors import open_files
from tests.support.waiting import eventually_async, has_ended

QEMU = Path("/usr/bin/qemu-system-x86_64")

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not QEMU.exists(), reason="needs qemu-system-x86_64"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv"),
]

#: What a tiny kernel does after it has said its line.
HANG = bytes.fromhex("fa f4 eb fd")  # cli; hlt; jmp back
RESET = bytes.fromhex("b0 fe e6 64") + HANG  # the keyboard controller's reset line
AGAIN = bytes.fromhex("eb e9")  # from the beginning


def tiny_kernel(says: str, then: bytes) -> bytes:
    """An ELF file that QEMU starts by the PVH protocol, in 32-bit mode: it writes to the serial port, then `then`.

    Layout as in the ELF specification; the note is Xen's XEN_ELFNOTE_PHYS32_ENTRY.
    """
    base, header_size, program_header_size = 0x100000, 64, 56
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", base)
    note_offset = header_size + 2 * program_header_size
    code_offset = note_offset + len(note)
    loop = bytes.fromhex("ac 84c0 7403 ee ebf8")  # lodsb; test al, al; jz +3; out dx, al; jmp loop
    code_size = 11 + len(loop) + len(then)
    start = b"\xfc\xbe" + struct.pack("<I", base + code_size) + b"\xba" + struct.pack("<I", 0x3F8)
    code = start + loop + then + says.encode() + b"\0"
    program_headers = struct.pack("<IIQQQQQQ", 1, 7, code_offset, base, base, len(code), len(code), 4096) + struct.pack(
        "<IIQQQQQQ", 4, 4, note_offset, 0, 0, len(note), len(note), 4
    )
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(2, 62, 1, base, header_size, 0, 0, header_size, program_header_size, 2, 0, 0, 0),
    )
    return header + program_headers + note + code


def children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(map(int, (task / "children").read_text().split()))
        except FileNotFoundError:
            continue  # a thread that has ended meanwhile has none
    return found


@pytest.fixture
async def nothing_left(tmp_path: Path) -> Any:
    """Holds the test to leave no process, no descriptor and no file but the logs."""
    await asyncio.sleep(0)
    before = children(), open_files()
    yield
    await asyncio.sleep(0)
    assert (children(), open_files()) == before
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} <= {"console.log", "console.log.1", "qemu.log", "qemu.log.1"}


@pytest.fixture
def make_vm(tmp_path: Path) -> Iterator[Callable[..., QemuVm]]:
    """Makes VMs with a tiny kernel; none of them outlives the test."""
    vms: list[QemuVm] = []
    (tmp_path / "run").mkdir()

    def make(says: str = "hello from the guest\n", then: bytes = HANG, **changes: Any) -> QemuVm:
        kernel = tmp_path / f"kernel{len(vms)}"
        kernel.write_bytes(tiny_kernel(says, then))
        values: dict[str, Any] = {
            "sandbox_id": "test",
            "run_dir": tmp_path / "run",
            "vmm": QEMU,
            "kernel": kernel,
            "initrd": kernel,
            "accelerator": "tcg",
            "channels": ("kata.rpc",),
            "programs": load().config.hypervisor.host_programs,
        }
        vms.append(QemuVm(VmPlan(**(values | changes))))
        return vms[-1]

    yield make
    for vm in vms:
        vm.kill()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.usefixtures("nothing_left")
async def test_start_and_stop(make_vm: Callable[..., QemuVm]) -> None:
    vm = make_vm()
    await vm.start()
    pid = vm.pid
    assert Path(f"/proc/{pid}/comm").read_text().startswith("qemu")
    await eventually_async(vm.console_tail, "its words", lambda said: "hello from the guest" in said)
    channel = vm.channel("kata.rpc")
    with pytest.raises(FailedPrecondition):
        vm.channel("kata.rpc")
    exit_ = await vm.stop()
    assert exit_ is not None
    assert (exit_.status, exit_.expected) == (0, True)
    assert not alive(pid)
    assert vm.pid == 0
    assert await vm.wait() is exit_ is await vm.stop()
    assert channel.recv(1) == b""
    channel.close()
    assert vm.console_tail(1) == "hello from the guest"
    with pytest.raises(FailedPrecondition, match="started before"):
        await vm.start()
    with pytest.raises(KataError):
        await vm.pause()


@pytest.mark.usefixtures("nothing_left")
async def test_qemu_is_confined(
    make_vm: Callable[..., QemuVm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a host without a helper: QEMU serves the files by itself, and needs capabilities for that.
    monkeypatch.setattr(share, "_HELPERS", ())
    (tmp_path / "share").mkdir()
    vm = make_vm(share_dir=tmp_path / "share", environment=(("NAME", "value"),))
    await vm.start()
    process = Path(f"/proc/{vm.pid}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    assert int(status["CapEff"], 16) == sum(1 << bit for bit in (0, 1, 3, 4, 31))
    assert status["CapBnd"] == status["CapEff"]
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert (process / "environ").read_bytes() == b"NAME=value\0"
    assert os.readlink(process / "cwd") == "/"
    assert os.readlink(process / "fd/0") == "/dev/null"
    assert not any(str(tmp_path / "run") in target for target in open_files(vm.pid).values())
    await vm.stop()


@pytest.mark.usefixtures("nothing_left")
async def test_qemu_has_no_capability_if_another_serves_the_files_and_none_of_the_hosts_namespaces(
    make_vm: Callable[..., QemuVm], tmp_path: Path
) -> None:
    (tmp_path / "share").mkdir()
    vm = make_vm(share_dir=tmp_path / "share" if share.find_helper() else None)
    await vm.start()
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{vm.pid}/status").read_text().splitlines())
    assert [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 5
    namespaces = {name: os.readlink(f"/proc/{vm.pid}/ns/{name}") for name in ("net", "ipc", "uts", "pid")}
    assert [name for name, found in namespaces.items() if found == os.readlink(f"/proc/self/ns/{name}")] == []
    await vm.stop()


@pytest.mark.usefixtures("nothing_left")
async def test_a_guest_that_ends_by_itself(make_vm: Callable[..., QemuVm]) -> None:
    vm = make_vm(then=RESET)
    await vm.start()
    async with asyncio.timeout(60):
        exit_ = await vm.wait()
    assert (exit_.status, exit_.expected) == (0, False)
    assert vm.console_tail() == "hello from the guest"
    assert "has ended with status 0; the guest's console ends with: hello from the guest" in vm.why_ended
    with pytest.raises(Unavailable, match="has ended"):
        vm.channel("kata.rpc")


@pytest.mark.usefixtures("nothing_left")
async def test_qemu_killed_by_somebody_else(make_vm: Callable[..., QemuVm], caplog: pytest.LogCaptureFixture) -> None:
    vm = make_vm()
    await vm.start()
    waiters = [asyncio.create_task(vm.wait()) for _ in range(2)]
    os.kill(vm.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        first, second = await asyncio.gather(*waiters)
    assert first is second
    assert (first.status, first.expected) == (-signal.SIGKILL, False)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "was killed by signal 9" in said
    assert vm.why_ended == said


@pytest.mark.usefixtures("nothing_left")
async def test_the_end_of_the_server_of_the_shared_tree_is_that_of_the_vm_and_is_told(
    make_vm: Callable[..., QemuVm], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if share.find_helper() is None:
        pytest.skip("QEMU has no 9p helper here")
    (tmp_path / "tree").mkdir()
    (tmp_path / "root").mkdir()
    vm = make_vm(share_dir=tmp_path / "tree", root_dir=tmp_path / "root")
    await vm.start()
    assert vm._process is not None
    assert vm._process.helpers
    os.kill(vm._process.helpers[-1].pid, signal.SIGSEGV)
    async with asyncio.timeout(60):
        exit_ = await vm.wait()
    assert (exit_.status, exit_.expected) == (-signal.SIGKILL, False)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "the server of the shared tree" in said
    assert "was killed by signal 11, so its VM is ended" in said
    assert vm.why_ended == said


@pytest.mark.usefixtures("nothing_left")
async def test_a_qemu_that_does_not_react_is_killed(make_vm: Callable[..., QemuVm]) -> None:
    vm = make_vm()
    await vm.start()
    os.kill(vm.pid, signal.SIGSTOP)
    begin = time.monotonic()
    exit_ = await vm.stop(0.4)
    assert exit_ is not None
    assert (exit_.status, exit_.expected) == (-signal.SIGKILL, True)
    assert time.monotonic() - begin < 30


@pytest.mark.usefixtures("nothing_left")
async def test_a_flooding_guest_fills_no_disk_and_starves_nobody(
    make_vm: Callable[..., QemuVm], tmp_path: Path
) -> None:
    vm = make_vm(says="x" * 100 + "\x1b[2J\n", then=AGAIN)
    await vm.start()
    older = tmp_path / "run/console.log.1"
    await eventually_async(older.exists, "a full log")
    begin = time.monotonic()
    await vm.pause()
    assert time.monotonic() - begin < 20
    assert sum(path.stat().st_size for path in (tmp_path / "run").iterdir()) <= MAX_LOG_BYTES
    assert "\x1b" not in vm.console_tail()
    await vm.stop()


@pytest.mark.usefixtures("nothing_left")
async def test_pause_and_resume(make_vm: Callable[..., QemuVm], tmp_path: Path) -> None:
    vm = make_vm(says="tick\n", then=AGAIN)
    log = tmp_path / "run/console.log"

    def moved() -> tuple[int, int]:
        return log.stat().st_ino, log.stat().st_size

    await vm.start()
    await eventually_async(moved, "its words", lambda seen: seen[1] > 0)
    await vm.pause()

    async def silence() -> tuple[int, int] | None:
        before = moved()
        await asyncio.sleep(0.3)
        return before if moved() == before else None

    # What was on its way arrives first.
    still = await eventually_async(silence, "silence")
    await vm.resume()
    await eventually_async(moved, "more words", lambda seen: seen != still)
    await vm.stop()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("fault", "said"), [("cpu", "no-such-feature"), ("kernel", "linux kernel too old")])
async def test_a_qemu_that_ends_at_once(make_vm: Callable[..., QemuVm], tmp_path: Path, fault: str, said: str) -> None:
    (tmp_path / "garbage").write_bytes(b"garbage" * 1000)
    vm = make_vm(**{"cpu_features": "no-such-feature=on"} if fault == "cpu" else {"kernel": tmp_path / "garbage"})
    with pytest.raises(VmLaunchError) as caught:
        await vm.start()
    assert caught.value.phase == "qemu start"
    assert caught.value.exit_status == 1
    assert said in caught.value.output
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert vm.pid == 0


@pytest.mark.usefixtures("nothing_left")
async def test_a_qemu_that_has_ended_before_anybody_speaks_to_it(
    make_vm: Callable[..., QemuVm], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sockets may be closed before the client, which takes its time to import, listens: it hears nothing then."""
    vm = make_vm(vmm=Path("/bin/false"))
    monkeypatch.setattr(vm, "_connect", asyncio.Event().wait)
    async with asyncio.timeout(10):
        with pytest.raises(VmLaunchError, match="qemu ended by itself"):
            await vm.start()


@pytest.mark.usefixtures("nothing_left")
async def test_a_qemu_that_never_answers(make_vm: Callable[..., QemuVm], tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\necho the last words >&2\nexec sleep 60\n")
    silent.chmod(0o755)
    with pytest.raises(VmLaunchError, match=r"did not answer within 1 s.*the last words") as caught:
        await make_vm(vmm=silent).start(timeout=0.6)
    assert caught.value.exit_status is None
    assert 0.6 <= caught.value.elapsed < 30


@pytest.mark.usefixtures("nothing_left")
async def test_a_qemu_that_cannot_be_executed(make_vm: Callable[..., QemuVm], tmp_path: Path) -> None:
    (tmp_path / "qemu").write_text("#!/no/such/interpreter\n")
    (tmp_path / "qemu").chmod(0o755)
    with pytest.raises(VmLaunchError, match="setpriv: failed to execute") as caught:
        await make_vm(vmm=tmp_path / "qemu").start()
    assert caught.value.exit_status in (126, 127)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.08])
async def test_a_start_that_is_given_up(make_vm: Callable[..., QemuVm], delay: float) -> None:
    vm = make_vm()
    task = asyncio.create_task(vm.start())
    await asyncio.sleep(delay)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        assert vm.pid == 0
    else:
        await vm.stop()  # it was quicker


@pytest.mark.usefixtures("nothing_left")
async def test_a_log_that_cannot_be_made(make_vm: Callable[..., QemuVm], tmp_path: Path) -> None:
    (tmp_path / "run/qemu.log").symlink_to("/nowhere")
    with pytest.raises(VmLaunchError, match="symbolic links"):
        await make_vm().start()


def test_qemu_dies_with_its_event_loop(make_vm: Callable[..., QemuVm]) -> None:
    before = children(), open_files()

    async def forgetful() -> int:
        vm = make_vm()
        await vm.start()
        return vm.pid

    pid = asyncio.run(forgetful())
    assert not Path(f"/proc/{pid}").exists()
    gc.collect()
    assert (children(), open_files()) == before


@pytest.mark.usefixtures("make_vm")
async def test_qemu_dies_with_its_parent(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(tiny_kernel("alive\n", HANG))
    program = f"""
        import asyncio
        from pathlib import Path
        from kata.runtime.hypervisor.base import VmPlan
        from kata.runtime.hypervisor.qemu.vm import QemuVm

        async def main():
            kernel = Path({str(kernel)!r})
            vm = QemuVm(VmPlan(sandbox_id="orphan", run_dir=Path({str(tmp_path / "run")!r}),
                                         vmm=Path({str(QEMU)!r}), kernel=kernel, initrd=kernel, accelerator="tcg"))
            await vm.start()
            print(vm.pid, flush=True)
            await vm.wait()

        asyncio.run(main())
    """
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(program), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(60):
        pid = int(await parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    await parent.wait()
    await eventually_async(lambda: has_ended(pid), "its end with its parent's")


@pytest.mark.usefixtures("nothing_left", "make_vm")
@pytest.mark.parametrize(
    ("says", "then", "verdict"),
    [
        (trial_boot.PROBE_ANSWER, RESET, None),
        ("I am stuck\n", HANG, "did not finish a boot under tcg within 1 s, its last line: I am stuck"),
        ("", HANG, "did not finish a boot under tcg within 1 s, without any output"),
        ("panic\n", RESET, "the guest kernel died under tcg (VMM status 0), its last line: panic"),
    ],
)
async def test_trial_boots(tmp_path: Path, says: str, then: bytes, verdict: str | None) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(tiny_kernel(says, then))
    timeout = 1.0 if then is HANG else 60.0
    outcome = await trial_boot.probe("tcg", vmm=QEMU, kernel=kernel, initrd=kernel, timeout=timeout)
    assert outcome == verdict if verdict is None else verdict in (outcome or "")


@pytest.fixture
def image() -> store.GuestImage:
    try:
        return store.find()
    except KataError as error:
        pytest.skip(f"needs the guest image: {error.message}")


async def test_a_trial_boot_of_the_guest_image(image: store.GuestImage) -> None:
    outcome = await trial_boot.probe("tcg", vmm=QEMU, kernel=image.kernel, initrd=image.initrd, timeout=120)
    assert outcome is None


@pytest.mark.usefixtures("nothing_left")
async def test_the_firmware_keeps_clear_of_the_initrd_whatever_the_number_of_disks(
    image: store.GuestImage, make_vm: Callable[..., QemuVm], tmp_path: Path
) -> None:
    """Memory that it takes for itself where the initrd is, devices write to: a module of the initrd was broken then."""
    vm = make_vm(
        kernel=image.kernel,
        initrd=image.initrd,
        image=image.rootfs,
        empty_disks=(True,) * MAX_EMPTY_DISKS,
        kernel_params=("kata.probe", "loglevel=7"),
    )
    await vm.start()
    async with asyncio.timeout(120):
        await vm.wait()
    await vm.stop()
    console = (tmp_path / "run" / "console.log").read_text()
    (first, last) = [int(number, 16) for number in re.findall(r"\bRAMDISK: \[mem (\S+)-(\S+)\]", console)[0]]
    reserved = [
        (int(begin, 16), int(end, 16)) for begin, end in re.findall(r"BIOS-e820: \[mem (\S+)-(\S+)\] reserved", console)
    ]
    assert reserved
    assert not [f"{begin:#x}-{end:#x}" for begin, end in reserved if begin <= last and first <= end]


@pytest.mark.usefixtures("nothing_left")
async def test_the_agent_answers_with_the_least_memory_and_writes_to_the_share(
    image: store.GuestImage, make_vm: Callable[..., QemuVm], tmp_path: Path
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    vm = make_vm(
        kernel=image.kernel,
        initrd=image.initrd,
        image=image.rootfs,
        memory_mib=MIN_MEMORY_MIB,
        share_dir=share,
        kernel_params=("agent.server_addr=virtio-serial://kata.rpc",),
    )
    await vm.start()
    client = await Client.from_socket(vm.channel("kata.rpc"))
    health = Stub(client, health_pb2.DESCRIPTOR.services_by_name["Health"])
    agent = Stub(client, agent_pb2.DESCRIPTOR.services_by_name["AgentService"])
    try:
        await health.call("Check", health_pb2.CheckRequest(), timeout=90)
        storage = agent_pb2.Storage(
            driver="9p",
            source=shared_tree.TAG,
            fstype="9p",
            options=shared_tree.options_9p(512_000, cache="none"),
            mount_point=GUEST_SHARED,
        )
        request = agent_pb2.CreateSandboxRequest(hostname="h", sandbox_id="test", storages=[storage])
        await agent.call("CreateSandbox", request, timeout=60)
        copy = agent_pb2.CopyFileRequest(
            path=f"{GUEST_SHARED}/file", file_size=4, file_mode=0o104750, uid=1234, gid=4321, data=b"data"
        )
        await agent.call("CopyFile", copy, timeout=60)
    finally:
        await client.close()
        await vm.stop()
    written = (share / "file").stat()
    assert (share / "file").read_bytes() == b"data"
    assert (written.st_uid, written.st_gid) == (1234, 4321)
    assert written.st_mode & 0o777 == 0o750
