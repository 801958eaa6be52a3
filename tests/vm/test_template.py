"""Templates with the real guest: made once, started from many times, and never in the way.

The clones are told apart by what only their own randomness, clock and names can say.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kata.cli import gc
from kata.cli.host import qemu_version
from kata.errors import FailedPrecondition, ResourceExhausted
from kata.linux import mount
from kata.linux.libc import LIBC, check
from kata.oci import convert
from kata.oci.default import default_spec
from kata.osbuilder.store import file_digest
from kata.protocols import agent_pb2
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.config.loader import load
from kata.runtime.config.settings import Config
from kata.runtime.hypervisor.base import VirtualMachine, VmPlan
from kata.runtime.hypervisor.memory import HELD
from kata.runtime.hypervisor.qemu.command import MAPS_READ_ONLY_SINCE
from kata.runtime.hypervisor.qemu.vm import QEMU_LOG
from kata.runtime.hypervisor.template import build, store, template
from kata.runtime.launch.bring_up import bring_up, ensure_template
from kata.runtime.launch.guest_clock import settle_clock
from kata.runtime.launch.host import look_at_host
from kata.runtime.launch.timings import Timings, read
from kata.runtime.launch.vm_plan import plan_vm
from kata.runtime.ledger.journal import STATE_ROOT, Ledger, claim
from kata.runtime.ledger.kinds import PROCESS
from kata.runtime.sandbox.requests import create_sandbox_request
from kata.runtime.storage.container_files import GUEST_SHARED
from tests.support import leaks
from tests.support.images import busybox_rootfs
from tests.support.waiting import eventually, has_ended
from tests.support.writing import ways_to_write

pytestmark = [pytest.mark.vm, pytest.mark.timeout(240)]

KATA = str(Path(sys.executable).with_name("kata"))
PREFIX = f"{leaks.TEST_PREFIX}tpl-"
#: Enough for the guest, and as little as possible to write.
MEMORY_MIB = 256
CLOCK_ERROR_S = 0.02
_PIDFD_GETFD = 438


@dataclass
class Started:
    """A VM that is up."""

    vm: VirtualMachine
    agent: AgentClient
    plan: VmPlan


@asynccontextmanager
async def started(config: Config, name: str, says: list[str] | None = None) -> AsyncIterator[Started]:
    """A VM by a template or without; nothing is left of it afterwards."""
    ledger = ledger_of(name)
    try:
        plan = plan_of(config, ledger)
        progress = (lambda _: None) if says is None else says.append
        timings = Timings(plan.run_dir, time.monotonic())
        vm, agent = await bring_up(plan, config, ledger, timings, progress)
        timings.write()
        try:
            yield Started(vm, agent, plan)
        finally:
            await vm.stop()
            await agent.close()
    finally:
        assert ledger.release() == []


def ledger_of(name: str) -> Ledger:
    ledger = claim(f"{STATE_ROOT}/{PREFIX}{name}")
    ledger.hold(PROCESS, ledger.directory)
    return ledger


def plan_of(config: Config, ledger: Ledger) -> VmPlan:
    directory = Path(ledger.directory)
    for name in ("shared", "root"):
        (directory / name).mkdir(exist_ok=True)
    return plan_vm(directory.name, directory, {}, config, look_at_host(config.hypervisor, "tcg"))


def configured(root: Path) -> Config:
    config = load().config
    return replace(
        config,
        hypervisor=replace(config.hypervisor, default_memory=MEMORY_MIB),
        factory=replace(config.factory, template_path=root),
    )


def keys(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if not path.name.startswith(".")]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    with leaks.nothing_left(PREFIX):
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("templates")


@pytest.fixture
def config(root: Path) -> Config:
    return configured(root)


async def test_concurrent_first_starts_make_one(config: Config, root: Path) -> None:
    says: list[str] = []
    async with AsyncExitStack() as stack:
        vms = await asyncio.gather(
            *(stack.enter_async_context(started(config, f"first{number}", says)) for number in range(3))
        )
        await asyncio.gather(*(one.agent.check(10) for one in vms))
    assert len(keys(root)) == 1
    assert [text for text in says if text.startswith("building")] == [says[0]], "one made it, and told"
    assert says[-1].startswith("the template takes ")
    assert [path.name for path in root.iterdir() if path.name != ".lock"] == keys(root)


async def test_a_template_is_small_and_private(config: Config, root: Path) -> None:
    async with started(config, "small"):
        [found] = store.list_templates(root)
    assert (found.vm["memory_mib"], found.vm["vcpus"]) == (MEMORY_MIB, 1)
    assert found.size < 100_000_000
    assert (root / found.key).stat().st_mode & 0o077 == 0, "only root may look into it"
    assert all(path.stat().st_mode & 0o022 == 0 for path in (root / found.key).iterdir())


async def test_a_vm_goes_on_in_a_moment_and_writes_nothing_to_the_template(config: Config, root: Path) -> None:
    async with started(config, "warm"):
        pass
    [key] = keys(root)
    memory = root / key / template.MEMORY
    before, digest = memory.stat(), file_digest(memory)
    async with started(config, "moment") as one:
        phases = [phase.name for phase in read(one.plan.run_dir).phases]
        await one.agent.create_sandbox(create_sandbox_request("moment", {}, config))
    assert "first answer" in phases
    assert "boot" not in phases
    after = memory.stat()
    # Not st_blocks: on a fresh ext4 it was seen to change under a file that nobody could write to.
    assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)
    assert file_digest(memory) == digest


async def test_what_qemu_has_of_a_template_nobody_can_write_to(config: Config, root: Path) -> None:
    """Neither by what QEMU has open, nor by what that can be opened as again, nor with all capabilities of root."""
    version = qemu_version(config.hypervisor.path).split(".")
    reads = (int(version[0]), int(version[1])) >= MAPS_READ_ONLY_SINCE
    async with started(config, "one") as one, started(config, "two") as two:
        # QEMU 10 warns of a state that it is to read from a descriptor.
        assert "warning" not in (one.plan.run_dir / QEMU_LOG).read_text()
        [key] = keys(root)
        memories = [[fd for fd in files_of(vm) if fd.stat().st_size == MEMORY_MIB << 20] for vm in (one.vm, two.vm)]
        assert all(memories)
        assert len({fd.stat().st_ino for found in memories for fd in found}) == 1, "they share one"
        file = (root / key / template.MEMORY).stat()
        assert all(os.path.samestat(fd.stat(), file) == reads for fd in memories[0])
        qemu = os.pidfd_open(one.vm.pid)
        for fd in memories[0]:
            opened = [get_descriptor(qemu, int(fd.name)), os.open(fd, os.O_RDONLY)]
            if reads:
                with pytest.raises(OSError, match="Read-only file system"):
                    os.open(fd, os.O_RDWR)
            else:
                opened.append(os.open(fd, os.O_RDWR))
            for descriptor in opened:
                for way in ways_to_write.values():
                    with pytest.raises(OSError):
                        way(descriptor)
                os.close(descriptor)
        os.close(qemu)
        await asyncio.gather(*(vm.agent.check(10) for vm in (one, two)))
    assert not list(Path(STATE_ROOT).glob(f"{PREFIX}*/{HELD}"))


def files_of(vm: VirtualMachine) -> list[Path]:
    """The regular files that QEMU has open."""
    return [path for path in Path("/proc", str(vm.pid), "fd").iterdir() if path.is_file()]


def get_descriptor(process: int, number: int) -> int:
    """A descriptor of the very file that a process has open (pidfd_getfd(2))."""
    return check(LIBC.syscall(ctypes.c_long(_PIDFD_GETFD), process, number, 0), "pidfd_getfd")


#: Run with the guest's own Python: what only this clone can know, then the time for each line of input.
SCRIPT = """
import json, os, random, sys, time
read = lambda path: open(path).read().strip()
print(json.dumps({
    "urandom": os.urandom(16).hex(),
    "uuid": read("/proc/sys/kernel/random/uuid"),
    "boot id": read("/proc/sys/kernel/random/boot_id"),
    "python": random.random(),
    "openssl": os.popen("/bin/openssl rand -hex 16").read().strip(),
    "machine id": read("/machine-id"),
    "hostname": os.uname().nodename,
}), flush=True)
for line in sys.stdin:
    print(time.time(), flush=True)
"""


def put_openssl(rootfs: Path) -> None:
    """The host's openssl, and its libraries where its loader looks first."""
    listed = subprocess.run(["ldd", "/usr/bin/openssl"], capture_output=True, text=True, check=True).stdout
    libraries = {word for line in listed.splitlines() for word in line.split() if word.startswith("/")}
    (rootfs / "ssl").mkdir()
    for path in ("/usr/bin/openssl", *libraries):
        shutil.copy(path, rootfs / "ssl")
    loader = next(path for path in libraries if "/ld-" in path)
    (rootfs / "bin/openssl").write_text(
        f'#!/bin/sh\nOPENSSL_CONF=/dev/null exec /ssl/{Path(loader).name} --library-path /ssl /ssl/openssl "$@"\n'
    )
    (rootfs / "bin/openssl").chmod(0o755)


async def tell(one: Started, name: str, rootfs: Path, config: Config) -> dict[str, Any]:
    """Run SCRIPT in a container of the VM; it goes on telling the time."""
    mount.bind(str(rootfs), str(one.plan.share_dir / "box"), 0)  # type: ignore[operator]
    await one.agent.create_sandbox(create_sandbox_request(name, {}, config))
    spec = default_spec(
        ["/usr/bin/python3", "-ISc", SCRIPT],
        rootfs=f"{GUEST_SHARED}/box",
        hostname=name,
        mounts=[
            {"destination": target, "type": "bind", "source": source, "options": ["rbind", "ro"]}
            for target, source in (
                ("/usr", "/usr"),
                ("/lib", "/usr/lib"),
                ("/lib64", "/usr/lib64"),
                ("/machine-id", "/etc/machine-id"),
            )
        ],
    )
    spec["mounts"] = [entry for entry in spec["mounts"] if entry["destination"] != "/dev/shm"]
    request = agent_pb2.CreateContainerRequest(container_id="box", OCI=convert.to_proto(spec))
    await one.agent.create_container(request, timeout=60)
    await one.agent.start_container("box")
    found: dict[str, Any] = json.loads(await one.agent.read_stdout("box", ""))
    return found


async def clock_error(one: Started) -> float:
    """How far off the guest's clock is at least, in seconds."""
    errors = []
    for _ in range(5):
        before = time.time()
        await one.agent.write_stdin("box", "", b"\n")
        guest = float(await one.agent.read_stdout("box", ""))
        errors.append(max(0.0, before - guest, guest - time.time()))
    return min(errors)


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.long)])
async def test_clones_differ_in_all_that_must_not_be_equal(config: Config, tmp_path: Path, count: int) -> None:
    rootfs = tmp_path / "rootfs"
    busybox_rootfs(rootfs)
    put_openssl(rootfs)
    for name in ("usr", "lib", "lib64"):
        if (rootfs / name).exists():
            shutil.rmtree(rootfs / name)
        (rootfs / name).mkdir()
    (rootfs / "machine-id").touch()
    async with AsyncExitStack() as stack:
        clones = await asyncio.gather(
            *(stack.enter_async_context(started(config, f"clone{number}")) for number in range(count))
        )
        for one in clones:
            assert one.plan.share_dir is not None
            box = one.plan.share_dir / "box"
            box.mkdir()
            stack.callback(mount.umount, str(box))
        told = await asyncio.gather(*(tell(one, f"clone{number}", rootfs, config) for number, one in enumerate(clones)))
        await asyncio.gather(*(settle_clock(one.vm, one.agent) for one in clones))  # what a sandbox does while it runs
        errors = [await clock_error(one) for one in clones]
    for what in told[0]:
        assert len({one[what] for one in told}) == count, what
        assert all(one[what] for one in told), what
    assert max(errors) < CLOCK_ERROR_S, errors


async def test_a_changed_template_is_reported_and_made_anew(
    config: Config, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(config, "before"):
        [key] = keys(root)
    with (root / key / template.MEMORY).open("r+b") as file:
        file.write(b"changed")
    says: list[str] = []
    with caplog.at_level(logging.WARNING):
        async with started(config, "after", says) as one:
            await one.agent.check(10)
    assert "its memory was changed after it was built; it is built again" in caplog.text
    assert says[0].startswith("building a template")
    assert keys(root) == [key]


@pytest.mark.parametrize("shared_fs", ["virtio-9p", "virtio-fs"])
async def test_a_guest_can_practise_before_it_has_a_sandbox(config: Config, shared_fs: str) -> None:
    config = replace(config, hypervisor=replace(config.hypervisor, shared_fs=shared_fs))
    async with started(config, "practice") as one:
        await one.agent.warm_up()
        await one.agent.warm_up()
        assert "warm-up" not in one.vm.console_tail(100), "where the agent says what went wrong"
        assert one.plan.share_dir is not None
        assert not list(one.plan.share_dir.iterdir())
        await one.agent.create_sandbox(create_sandbox_request("practice", {}, config))
        with pytest.raises(FailedPrecondition, match="sandbox practice is already running"):
            await one.agent.warm_up()


async def test_a_template_that_is_removed_while_in_use(config: Config, root: Path) -> None:
    async with started(config, "inuse") as one:
        for key in keys(root):
            store.discard(root, key)
        await one.agent.create_sandbox(create_sandbox_request("inuse", {}, config))
    assert keys(root) == []


async def test_a_template_that_does_not_work_costs_a_boot_and_is_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(tmp_path)
    ledger = ledger_of("garbage")
    vm = template.description(with_warm_up(plan_of(config, ledger)))
    ledger.release()
    directory = tmp_path / template.key_of(vm)
    directory.mkdir()
    with (directory / template.MEMORY).open("wb") as file:
        file.truncate(MEMORY_MIB << 20)
    (directory / template.STATE).write_bytes(b"no state of qemu's")
    template.write_manifest(directory, vm)
    with caplog.at_level(logging.WARNING):
        async with started(config, "garbage") as one:
            await one.agent.check(10)
    assert "does not work, the VM is booted" in caplog.text
    assert keys(tmp_path) == []


def with_warm_up(plan: VmPlan) -> VmPlan:
    return replace(plan, kernel_params=(*plan.kernel_params, "agent.warm_up"))


async def test_a_place_that_cannot_be_written_to_costs_a_boot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        async with started(configured(tmp_path / "file/templates"), "nowhere") as one:
            await one.agent.check(10)
    assert "there is no template, the VM is booted: cannot keep templates in" in caplog.text


async def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "full"
    directory.mkdir()
    mount.mount("tmpfs", str(directory), "tmpfs", 0, "size=20m")
    try:
        config = configured(directory)
        ledger = ledger_of("full")
        try:
            with pytest.raises(ResourceExhausted, match="a template may need"):
                await ensure_template(plan_of(config, ledger), config, ledger, lambda _: None)
            monkeypatch.setattr(build, "_ROOM", 0)
            with pytest.raises(ResourceExhausted, match="no space left on device"):
                await ensure_template(plan_of(config, ledger), config, ledger, lambda _: None)
            assert keys(directory) == []
            with pytest.raises(FailedPrecondition, match=r"failed recently: .*no space left"):
                await ensure_template(plan_of(config, ledger), config, ledger, lambda _: None)
        finally:
            assert ledger.release() == []
        assert not [path for path in directory.iterdir() if path.is_dir()]
    finally:
        mount.umount(str(directory))


def test_a_builder_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "configuration.toml"
    file.write_text(f'[factory]\ntemplate_path = "{tmp_path / "templates"}"\n')
    builder = subprocess.Popen([KATA, "factory", "init", "--config", str(file)], stderr=subprocess.PIPE, text=True)
    assert builder.stderr is not None
    with builder:
        while "booting" not in (line := builder.stderr.readline()):
            assert line, "the builder ended by itself"
        (vm,) = eventually(lambda: vms_of(builder.pid), "a VM")
        builder.send_signal(signal.SIGKILL)
    eventually(lambda: has_ended(vm), "the VM dies with its builder")
    left = [name for name in gc.candidates() if name.startswith("factory-")]

    def released() -> list[Path]:
        for name in set(gc.candidates()) & set(left):
            gc.release(name)
        return [path for path in Path(STATE_ROOT).glob("factory-*") if path.name in left]

    # What the builder held ends with its last child.
    eventually(released, "nothing is left", lambda paths: not paths)
    assert keys(tmp_path / "templates") == []
    assert not list((tmp_path / "templates").glob(f"{store.BUILDING}*"))


def vms_of(parent: int) -> list[int]:
    """Process ids of the virtual machines that a process started."""
    children = [
        child for task in Path(f"/proc/{parent}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system")]
