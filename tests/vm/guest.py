"""A virtual machine with the agent in it, for tests of the agent: QEMU, guest image, one channel, one shared directory.

It knows nothing of the host's side of this project but how fast the guest's clock is, so that a failure here is the
agent's. Not for tests of anything else.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from kata.errors import NotFound
from kata.loop.watch import BLOCKED
from kata.oci import convert
from kata.osbuilder import store
from kata.protocols import agent_pb2 as pb
from kata.protocols import health_pb2, processes, shared_tree
from kata.runtime.hypervisor.deadline import MAX_RUN_DELAY_S, run_delay
from kata.runtime.launch.host import tsc_mhz
from kata.ttrpc import Client, ConnectionClosed, StatusError
from kata.ttrpc.typed import Stub
from tests.support import evidence
from tests.support.images import busybox

SHARED = "/run/kata-containers/shared/containers"

_LOGS = ("console", "qemu.log")
_BOOT_TIMEOUT = 90.0
# A boot takes seconds, an answer milliseconds; with tests beside it, longer.
_ANSWER_TIMEOUT = 20.0
_APPLETS = (
    *("sh", "echo", "cat", "sleep", "true", "false", "ls", "id", "stty", "head"),
    *("dd", "hostname", "env", "grep"),
)
_PARAMETERS = (
    "console=ttyS0 quiet panic=-1 cryptomgr.notests no_timer_check noreplace-smp 8250.nr_uarts=1 "
    "agent.server_addr=virtio-serial://kata.rpc agent.log=debug agent.emulated"
)


def missing() -> str:
    """What this machine lacks to boot a guest, or ""."""
    if os.geteuid():
        return "root"
    if not shutil.which("qemu-system-x86_64"):
        return "qemu-system-x86_64"
    try:
        store.find()
    except NotFound as error:
        return str(error)
    return ""


class Guest:
    """A running VM. Use as a context manager, once per module: a boot takes seconds.

    Attributes:
        directory: scratch, removed at the end; holds `share`, the host's side of the shared directory.
        share: what the guest can mount with `share_storage`.
    """

    def __init__(self, *parameters: str, memory: int = 512, devices: Sequence[str] = ()) -> None:
        self._parameters = parameters
        self._devices = devices
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self.directory = Path()
        self.share = Path()

    def __enter__(self) -> Guest:
        self.directory = Path(tempfile.mkdtemp(prefix="kata-guest-"))
        self.share = self.directory / "share"
        self.share.mkdir()
        for name in _LOGS:
            evidence.follow(self.directory / name)
        try:
            with (self.directory / "qemu.log").open("wb") as log:
                # A test run that is killed takes its VMs along. Not by preexec_fn: where gRPC has threads, in a worker
                # that has had tests of CRI, what it does after a fork has ended the child before it was QEMU.
                command = ["setpriv", "--pdeathsig=KILL", "--", *self._command()]
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(10)
        for name in _LOGS:
            evidence.end(self.directory / name)
        shutil.rmtree(self.directory)

    def _command(self) -> list[str]:
        image = store.find()
        return [
            "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm", "-smp", "1",
            "-m", f"{self._memory}M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", str(image.kernel), "-initrd", str(image.initrd),
            # Without it the guest's time runs up to eight times too fast beside other work, and its timeouts with it.
            "-append", " ".join((_PARAMETERS, f"tsc_early_khz={tsc_mhz() * 1000}", *self._parameters)),
            "-serial", f"file:{self.directory}/console",
            "-drive", f"if=none,id=root,file={image.rootfs},format=raw,readonly=on",
            "-device", "virtio-blk-pci,drive=root",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=rpc,path={self.directory}/rpc,server=on,wait=off",
            "-device", "virtserialport,chardev=rpc,name=kata.rpc",
            "-chardev", f"socket,id=console,path={self.directory}/debug,server=on,wait=off",
            "-device", "virtserialport,chardev=console,name=kata.console",
            "-fsdev", f"local,id=share,path={self.share},security_model=none,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=share,mount_tag=kataShared",
            *self._devices,
        ]  # fmt: skip

    @property
    def console(self) -> str:
        """What the guest has written to its console so far."""
        path = self.directory / "console"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def records(self) -> list[dict[str, Any]]:
        """The agent's log so far."""
        return [json.loads(line) for line in self.console.splitlines() if line.startswith('{"msg"')]

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def run_delay(self) -> float:
        """Seconds for which the VM was ready to run and the host gave it no CPU: deadlines leave them out."""
        return min(run_delay(self._process.pid), MAX_RUN_DELAY_S) if self._process else 0.0

    def wait_off(self, timeout: float) -> int:
        """QEMU's exit status after the VM has been switched off."""
        assert self._process
        begin, withheld = time.monotonic(), self.run_delay
        while self._process.poll() is None:
            waited = time.monotonic() - begin - (self.run_delay - withheld)
            assert waited < timeout, f"the VM runs {waited:.0f} s later; console:\n{self.console[-4000:]}"
            time.sleep(0.05)
        return self._process.returncode

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Agent]:
        """The agent's RPCs, as soon as it answers.

        QEMU 7.2 loses its way when the guest writes in the very moment in which the host leaves: the next one who
        comes hears nothing, or what was meant for the last. So who is not answered comes again. The product's own
        channel is a pair of sockets that nobody leaves.
        """
        begin, withheld = time.monotonic(), self.run_delay
        while not (self.directory / "rpc").exists() and self.running:
            await asyncio.sleep(0.02)
        async with AsyncExitStack() as stack:
            while True:
                try:
                    client = await stack.enter_async_context(await Client.connect_unix(f"{self.directory}/rpc"))
                except OSError as error:
                    log = (self.directory / "qemu.log").read_text(errors="replace")
                    raise AssertionError(f"QEMU: {log[-2000:]}\nconsole:\n{self.console[-4000:]}") from error
                agent = Agent(client)
                left = begin + _BOOT_TIMEOUT + self.run_delay - withheld - time.monotonic()
                try:
                    await agent.health.Check(health_pb2.CheckRequest(), timeout=min(left, _ANSWER_TIMEOUT))
                    break
                except (ConnectionClosed, StatusError) as error:
                    if left < _ANSWER_TIMEOUT or not self.running:
                        text = f"no answer from the agent; console:\n{self.console[-4000:]}"
                        raise AssertionError(text) from error
                    await stack.aclose()
            yield agent


class Agent:
    """The two services on one connection, and the few calls that every test makes."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.health = Stub(client, health_pb2.DESCRIPTOR.services_by_name["Health"])
        self.rpc = Stub(client, pb.DESCRIPTOR.services_by_name["AgentService"])

    async def create_sandbox(self, **fields: Any) -> None:
        """CreateSandbox with the shared directory mounted."""
        storages = [share_storage(), *fields.pop("storages", ())]
        await self.rpc.CreateSandbox(pb.CreateSandboxRequest(storages=storages, **fields), timeout=60)

    async def create(self, container_id: str, spec: dict[str, Any], **fields: Any) -> None:
        """CreateContainer."""
        oci: Any = spec
        request = pb.CreateContainerRequest(container_id=container_id, OCI=convert.to_proto(oci), **fields)
        await self.rpc.CreateContainer(request, timeout=60)

    async def start(self, container_id: str) -> None:
        await self.rpc.StartContainer(pb.StartContainerRequest(container_id=container_id), timeout=60)

    async def run(self, container_id: str, spec: dict[str, Any], **fields: Any) -> None:
        """Create and start."""
        await self.create(container_id, spec, **fields)
        await self.start(container_id)

    async def exec(self, container_id: str, exec_id: str, *arguments: str, **process: Any) -> None:
        """ExecProcess."""
        message = convert.process_from_proto(pb.ExecProcessRequest().process)
        message.update(process_spec(*arguments, **process))  # type: ignore[typeddict-item]
        await self.rpc.ExecProcess(
            pb.ExecProcessRequest(
                container_id=container_id, exec_id=exec_id, process=convert.process_to_proto(message)
            ),
            timeout=60,
        )

    async def wait(self, container_id: str, exec_id: str = "") -> int:
        request = pb.WaitProcessRequest(container_id=container_id, exec_id=exec_id)
        return int((await self.rpc.WaitProcess(request)).status)

    async def read(self, container_id: str, exec_id: str = "", *, stderr: bool = False, size: int = 1 << 20) -> bytes:
        """One read; b"" at the end."""
        call = self.rpc.ReadStderr if stderr else self.rpc.ReadStdout
        response = await call(pb.ReadStreamRequest(container_id=container_id, exec_id=exec_id, len=size))
        return bytes(response.data)

    async def read_all(self, container_id: str, exec_id: str = "", *, stderr: bool = False) -> bytes:
        """Everything up to the end."""
        parts = []
        while part := await self.read(container_id, exec_id, stderr=stderr):
            parts.append(part)
        return b"".join(parts)

    async def of_output(self, method: str, container_id: str, exec_id: str = "") -> None:
        """A call of `kata.protocols.processes`."""
        request = pb.WaitProcessRequest(container_id=container_id, exec_id=exec_id)
        await self.client.call(processes.SERVICE, method, request.SerializeToString(), timeout=60)

    async def write(self, container_id: str, data: bytes, exec_id: str = "") -> int:
        request = pb.WriteStreamRequest(container_id=container_id, exec_id=exec_id, data=data)
        return int((await self.rpc.WriteStdin(request)).len)

    async def close_stdin(self, container_id: str, exec_id: str = "") -> None:
        await self.rpc.CloseStdin(pb.CloseStdinRequest(container_id=container_id, exec_id=exec_id))

    async def signal(self, container_id: str, number: int, exec_id: str = "") -> None:
        request = pb.SignalProcessRequest(container_id=container_id, exec_id=exec_id, signal=number)
        await self.rpc.SignalProcess(request, timeout=30)

    async def remove(self, container_id: str, timeout: int = 0) -> None:
        request = pb.RemoveContainerRequest(container_id=container_id, timeout=timeout)
        await self.rpc.RemoveContainer(request, timeout=60)


def share_storage() -> pb.Storage:
    return pb.Storage(
        driver="9p",
        source=shared_tree.TAG,
        fstype="9p",
        options=shared_tree.options_9p(512_000, cache="none"),
        mount_point=f"{SHARED}/",
    )


def make_rootfs(share: Path, container_id: str) -> str:
    """A root directory of busybox in the shared directory; returns its path in the guest."""
    root = share / container_id / "rootfs"
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "bin/busybox").write_bytes(busybox())
    (root / "bin/busybox").chmod(0o755)
    for applet in _APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    return f"{SHARED}/{container_id}/rootfs"


def process_spec(*arguments: str, **fields: Any) -> dict[str, Any]:
    """An OCI process."""
    capabilities = ["CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE", "CAP_MKNOD"]
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": list(arguments),
        "env": ["PATH=/usr/bin:/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        "noNewPrivileges": True,
        **fields,
    }


def container_spec(rootfs: str, *arguments: str, **process: Any) -> dict[str, Any]:
    """An OCI spec as the host sends it."""
    return {
        "ociVersion": "1.0.2",
        "process": process_spec(*arguments, **process),
        "root": {"path": rootfs, "readonly": False},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "newinstance"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
        ],
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}]},
    }


def sandboxed(*parameters: str, devices: Sequence[str] = ()) -> Iterator[Guest]:
    """A guest with a sandbox running, for a module's fixture; skips where none can boot.

    Args:
        parameters: of the kernel.
        devices: QEMU's options for more devices.
    """
    if lack := missing():
        pytest.skip(f"needs {lack}")
    with Guest(*parameters, devices=devices) as guest:

        async def prepare() -> None:
            async with guest.connect() as agent:
                await agent.create_sandbox(hostname="pod", sandbox_id="sandbox-1")

        asyncio.run(prepare())
        assert "kata-init" not in guest.console
        assert "Traceback" not in guest.console
        yield guest
        assert guest.running, guest.console[-8000:]
        assert [record["msg"] for record in guest.records if record["msg"].startswith(BLOCKED)] == []
