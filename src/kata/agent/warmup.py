"""What an agent does before it is saved in a template: a container's whole life, once, and the memory tidied up.

Machines that go on from the template then find the modules loaded, the programs and libraries of the guest's root in
memory, and the agent's own code imported and run. The container's root directory is in the shared tree, as those of
most containers are; without one, the guest's own. The calls take the host's way, through ttrpc, because that code is to
be warm as well. What fails is logged and no more: a cold template works too.
"""

from __future__ import annotations

import asyncio
import gc
import glob
import logging
import mmap
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from kata.agent.container import Machinery
from kata.agent.sandbox import Sandbox
from kata.errors import FailedPrecondition, KataError
from kata.linux import mount
from kata.linux.libc import LIBC
from kata.oci import convert
from kata.oci.default import default_spec
from kata.protocols import agent_pb2 as pb
from kata.protocols import health_pb2, shared_tree
from kata.ttrpc import CallContext, Client, Handler, Server, StatusError
from kata.ttrpc.typed import Stub

_log = logging.getLogger(__name__)

_ID = "warm-up"
_SHARE = "/run/kata-containers/shared/containers/"
_SHM = "/run/kata-containers/sandbox/shm"
#: The container's root directory: in the shared tree, or where the guest's own is bound to.
_SHARED_ROOT, _BOUND_ROOT = f"{_SHARE}warm-up", "/run/kata-agent/warm-up"
#: What is in the shared one: a program by itself, and one with a loader and a library. This library is a program, too.
_LIBC = "/lib/x86_64-linux-gnu/libc.so.6"
_FILES = {"/bin/cat": "/bin/busybox", _LIBC: _LIBC, "/lib64/ld-linux-x86-64.so.2": "/lib64/ld-linux-x86-64.so.2"}
_DIRECTORIES = ("/dev", "/proc", "/sys")
#: What the host's default is, and any other would do: bytes of a 9p message.
_MSIZE = 512_000
#: Seconds; an emulated guest needs three.
_TIMEOUT = 30.0
_DROP_CACHES = "/proc/sys/vm/drop_caches"
# madvise(2): fault in now, for writing; Linux 5.14. Not in Python's mmap.
_MADV_POPULATE_WRITE = 23
#: Memory to fill with zeros, in bytes: more than this has not been used and given back at the end of a boot.
_ZEROED = 48 << 20


async def warm_up(server: Server, sandbox: Sandbox, machinery: Machinery) -> None:
    """Have the memory hold what containers need, and little else."""
    # What was read until now is read once in a guest's life; what is read from here on is what containers need.
    _write(_DROP_CACHES, "3")
    await run_container(server, sandbox, machinery)
    _tidy()


def warm_up_handler(server: Server, sandbox: Sandbox, machinery: Machinery) -> Handler:
    """The handler of `kata.protocols.standby`."""

    async def handle(ctx: CallContext, payload: bytes) -> bytes:
        if sandbox.running:
            raise FailedPrecondition(f"sandbox {sandbox.id} is running already")
        await run_container(server, sandbox, machinery)
        return b""

    return handle


async def run_container(server: Server, sandbox: Sandbox, machinery: Machinery) -> None:
    """Run a container in `sandbox`, which is empty again afterwards, through `server`."""
    machinery.start_ahead()
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(server.serve_connection(*await asyncio.open_connection(sock=theirs)))
    try:
        async with asyncio.timeout(_TIMEOUT), await Client.from_socket(ours) as client:
            await _live(client)
    except (KataError, StatusError, OSError, TimeoutError) as error:
        _log.warning("warm-up: %s", error)
    finally:
        await serving
        if sandbox.running:
            await sandbox.destroy()
    machinery.start_ahead()


async def _live(client: Client) -> None:
    """A container with pipes, and a process in it with a terminal."""
    health = Stub(client, health_pb2.DESCRIPTOR.services_by_name["Health"])
    agent = Stub(client, pb.DESCRIPTOR.services_by_name["AgentService"])
    await health.Check(health_pb2.CheckRequest())
    storages = [
        *_shared_tree(),
        pb.Storage(driver="ephemeral", source="shm", fstype="tmpfs", options=["size=65536k"], mount_point=_SHM),
    ]
    await agent.CreateSandbox(pb.CreateSandboxRequest(sandbox_id=_ID, storages=storages))
    with _root() as root:
        await _run(agent, root)


async def _run(agent: Stub, root: str) -> None:
    spec = default_spec(["/bin/cat"], rootfs=root, hostname="")
    await agent.CreateContainer(pb.CreateContainerRequest(container_id=_ID, OCI=convert.to_proto(spec)))
    await agent.StartContainer(pb.StartContainerRequest(container_id=_ID))
    await agent.WriteStdin(pb.WriteStreamRequest(container_id=_ID, data=b"warm\n"))
    await agent.ReadStdout(pb.ReadStreamRequest(container_id=_ID, len=1 << 20))
    await agent.StatsContainer(pb.StatsContainerRequest(container_id=_ID))

    process = convert.process_to_proto({**spec["process"], "args": [_LIBC], "terminal": True})
    await agent.ExecProcess(pb.ExecProcessRequest(container_id=_ID, exec_id="exec", process=process))
    await agent.TtyWinResize(pb.TtyWinResizeRequest(container_id=_ID, exec_id="exec", row=24, column=80))
    while (await agent.ReadStdout(pb.ReadStreamRequest(container_id=_ID, exec_id="exec", len=1 << 20))).data:
        pass
    await agent.WaitProcess(pb.WaitProcessRequest(container_id=_ID, exec_id="exec"))

    await agent.SignalProcess(pb.SignalProcessRequest(container_id=_ID, signal=signal.SIGKILL))
    await agent.WaitProcess(pb.WaitProcessRequest(container_id=_ID))
    await agent.RemoveContainer(pb.RemoveContainerRequest(container_id=_ID))


@contextmanager
def _root() -> Iterator[str]:
    """A container's root directory."""
    if os.path.ismount(_SHARE):
        try:
            for directory in (*_DIRECTORIES, *map(os.path.dirname, _FILES)):
                os.makedirs(_SHARED_ROOT + directory, exist_ok=True)
            for path, source in _FILES.items():
                shutil.copy(source, _SHARED_ROOT + path)
            yield _SHARED_ROOT
        finally:
            shutil.rmtree(_SHARED_ROOT)
    else:
        os.makedirs(_BOUND_ROOT, mode=0o700)
        # Only the root disk, without what is mounted in it: a container mounts its own.
        mount.bind("/", _BOUND_ROOT, 0)
        try:
            yield _BOUND_ROOT
        finally:
            mount.umount(_BOUND_ROOT)
            os.rmdir(_BOUND_ROOT)


def _shared_tree() -> list[pb.Storage]:
    """The shared tree, where this machine has the device for it: that of virtio-fs comes with a restore."""
    tree = pb.Storage(source=shared_tree.TAG, mount_point=_SHARE)
    if glob.glob("/sys/bus/virtio/drivers/9pnet_virtio/virtio*"):
        tree.driver = tree.fstype = "9p"
        tree.options.extend(shared_tree.options_9p(_MSIZE))
    elif glob.glob("/sys/bus/virtio/drivers/virtiofs/virtio*"):
        tree.driver, tree.fstype = "virtio-fs", "virtiofs"
        tree.options.extend(shared_tree.VIRTIO_FS_OPTIONS)
    else:
        return []
    return [tree]


def _tidy() -> None:
    """Give back what is not needed, and keep the collector from touching what is: a page touched is a page copied."""
    gc.collect()
    gc.freeze()
    LIBC.malloc_trim(0)
    _zero_free_memory()


def _zero_free_memory() -> None:
    """What the kernel has given out and got back still has its content, which would be saved for nothing.

    Small free blocks are given out first, and those are the used ones; a guest with little free memory keeps some.
    """
    pages = os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE
    with mmap.mmap(-1, min(_ZEROED, pages // 4), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        try:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            memory.madvise(_MADV_POPULATE_WRITE)
        except OSError as error:
            _log.warning("warm-up: zeroing free memory: %s", error.strerror)


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        _log.warning("warm-up: %s: %s", path, error.strerror)
