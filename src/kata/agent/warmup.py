"""Warming up an agent before it is saved in a template: it runs a container once and tidies up its memory.

VMs that are restored from the template then have the modules loaded, the programs and libraries of the guest's root in
the page cache, and the agent's code imported and executed. The container's root directory is in the shared tree, like
those of most containers; without one it is the guest's own. The calls go through ttrpc like the host's, so that this
code is warm as well. Failures are only logged: a cold template works too.
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

from kata import architecture
from kata.agent.context import AgentContext
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

log = logging.getLogger(__name__)

_ID = "warm-up"
_SHARE = "/run/kata-containers/shared/containers/"
_SHM = "/run/kata-containers/sandbox/shm"
#: The container's root directory: in the shared tree, or where the guest's own is bound to.
_SHARED_ROOT, _BOUND_ROOT = f"{_SHARE}warm-up", "/run/kata-agent/warm-up"
#: Files of the shared one: a static program, and one with a loader and a library. This library is a program, too.
_GUEST = architecture.named(os.uname().machine)
_LIBC = f"/lib/{_GUEST.libraries}/libc.so.6"
_FILES = {"/bin/cat": "/bin/busybox", _LIBC: _LIBC, _GUEST.loader: _GUEST.loader}
_DIRECTORIES = ("/dev", "/proc", "/sys")
#: Bytes of a 9p message: the host's default, and any other would do.
_MSIZE = 512_000
#: An emulated guest needs three.
_TIMEOUT_S = 30.0
_DROP_CACHES = "/proc/sys/vm/drop_caches"
# madvise(2): fault in now, for writing; Linux 5.14. Not in Python's mmap.
_MADV_POPULATE_WRITE = 23
#: Bytes of memory to zero: no more than this has been used and freed by the end of a boot.
_MAX_ZEROED = 48 << 20


async def warm_up(server: Server, sandbox: Sandbox, agent: AgentContext) -> None:
    """Run a container once and tidy up, so that memory holds what containers need and little else.

    Args:
        server: the agent's, which gets the calls.
        sandbox: empty before and afterwards.
        agent: what containers use.
    """
    # What was read until now is read once in a guest's life; containers need what is read from here on.
    _write(_DROP_CACHES, "3")
    await run_container(server, sandbox, agent)
    _tidy()


def warm_up_handler(server: Server, sandbox: Sandbox, agent: AgentContext) -> Handler:
    """Return the handler of `kata.protocols.standby`.

    Args:
        server: see `warm_up`.
        sandbox: see `warm_up`.
        agent: see `warm_up`.
    """

    async def handle(ctx: CallContext, payload: bytes) -> bytes:
        if sandbox.running:
            raise FailedPrecondition(f"sandbox {sandbox.id} is already running")
        await run_container(server, sandbox, agent)
        return b""

    return handle


async def run_container(server: Server, sandbox: Sandbox, agent: AgentContext) -> None:
    """Run a container once, by calls to the agent's server, and pre-spawn the first containers.

    Args:
        server: see `warm_up`.
        sandbox: see `warm_up`.
        agent: see `warm_up`.
    """
    agent.prespawn_containers()
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(server.serve_connection(*await asyncio.open_connection(sock=theirs)))
    try:
        async with asyncio.timeout(_TIMEOUT_S), await Client.from_socket(ours) as client:
            await _run_sandbox(client)
    except (KataError, StatusError, OSError, TimeoutError) as error:
        log.warning("warm-up: %s", error)
    finally:
        await serving
        if sandbox.running:
            await sandbox.destroy()
    agent.prespawn_containers()


async def _run_sandbox(client: Client) -> None:
    """A sandbox with a container with pipes, and a process in it with a terminal."""
    health = Stub(client, health_pb2.DESCRIPTOR.services_by_name["Health"])
    rpc = Stub(client, pb.DESCRIPTOR.services_by_name["AgentService"])
    await health.Check(health_pb2.CheckRequest())
    storages = [
        *_shared_tree(),
        pb.Storage(driver="ephemeral", source="shm", fstype="tmpfs", options=["size=65536k"], mount_point=_SHM),
    ]
    await rpc.CreateSandbox(pb.CreateSandboxRequest(sandbox_id=_ID, storages=storages))
    with _root() as root:
        await _run_container(rpc, root)


async def _run_container(rpc: Stub, root: str) -> None:
    spec = default_spec(["/bin/cat"], rootfs=root, hostname="")
    await rpc.CreateContainer(pb.CreateContainerRequest(container_id=_ID, OCI=convert.to_proto(spec)))
    await rpc.StartContainer(pb.StartContainerRequest(container_id=_ID))
    await rpc.WriteStdin(pb.WriteStreamRequest(container_id=_ID, data=b"warm\n"))
    await rpc.ReadStdout(pb.ReadStreamRequest(container_id=_ID, len=1 << 20))
    await rpc.StatsContainer(pb.StatsContainerRequest(container_id=_ID))

    process = convert.process_to_proto({**spec["process"], "args": [_LIBC], "terminal": True})
    await rpc.ExecProcess(pb.ExecProcessRequest(container_id=_ID, exec_id="exec", process=process))
    await rpc.TtyWinResize(pb.TtyWinResizeRequest(container_id=_ID, exec_id="exec", row=24, column=80))
    while (await rpc.ReadStdout(pb.ReadStreamRequest(container_id=_ID, exec_id="exec", len=1 << 20))).data:
        pass
    await rpc.WaitProcess(pb.WaitProcessRequest(container_id=_ID, exec_id="exec"))

    await rpc.SignalProcess(pb.SignalProcessRequest(container_id=_ID, signal=signal.SIGKILL))
    await rpc.WaitProcess(pb.WaitProcessRequest(container_id=_ID))
    await rpc.RemoveContainer(pb.RemoveContainerRequest(container_id=_ID))


@contextmanager
def _root() -> Iterator[str]:
    """A root directory for the container."""
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
    """The shared tree, if this VM has its device: that of virtio-fs is plugged in after a restore."""
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
    """Free memory, and keep the garbage collector off the rest: a page that is written is a page copied."""
    gc.collect()
    gc.freeze()
    LIBC.malloc_trim(0)
    _zero_free_memory()


def _zero_free_memory() -> None:
    """Zero memory that was used and freed: its content would be saved for nothing.

    The kernel hands out small free blocks first, which are the used ones; a guest with little free memory keeps some.
    """
    pages = os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE
    with mmap.mmap(-1, min(_MAX_ZEROED, pages // 4), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        try:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            memory.madvise(_MADV_POPULATE_WRITE)
        except OSError as error:
            log.warning("warm-up: zeroing free memory: %s", error.strerror)


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        log.warning("warm-up: %s: %s", path, error.strerror)
