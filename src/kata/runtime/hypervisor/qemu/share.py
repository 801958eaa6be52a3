"""The server of the shared tree: over 9p QEMU's helper or QEMU itself, over virtio-fs virtiofsd.

QEMU 7.2 cannot create FIFOs, sockets and device nodes there by itself: the fix of CVE-2023-2861 broke that. Its
`virtfs-proxy-helper` can. With the helper, QEMU needs no capability at all, and a guest that breaks out of 9p is in a
process in a chroot. QEMU 10 has no helper any more and is repaired; it serves the files itself, all but device nodes,
for which it is not given the capability.

virtiofsd works on memory that it shares with the guest. It runs in a chroot, too: in a mount namespace of its own it
would not see later mounts in the tree. The one in C of QEMU 7.2 and the one in Rust, which Debian packages under the
same path, take the same arguments.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socketpair
from socket import socket as Socket

from kata.runtime.hypervisor.base import SHARE_VIRTIO_FS, VmPlan
from kata.runtime.hypervisor.qemu import confine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

_HELPERS = (Path("/usr/lib/qemu/virtfs-proxy-helper"), Path("/usr/libexec/virtfs-proxy-helper"))
#: What the helper needs at its start; it drops all but the file capabilities.
_CAPABILITIES = ("chown", "dac_override", "fowner", "fsetid", "mknod", "setgid", "setuid", "sys_chroot")
#: virtiofsd's seccomp filter kills it if it cannot drop capabilities in its own way.
_VIRTIOFSD_CAPABILITIES = (*_CAPABILITIES, "setfcap", "setpcap")


def find_helper() -> Path | None:
    """The 9p helper's executable, or None if QEMU comes without."""
    return next((path for path in _HELPERS if os.access(path, os.X_OK)), None)


def server_of(plan: VmPlan) -> Path | None:
    """The program that serves the plan's shared tree; None without a tree, or where QEMU serves it by itself.

    Looks at the host: which helpers it has.
    """
    if plan.share_dir is None:
        return None
    return plan.virtiofsd if plan.share_fs == SHARE_VIRTIO_FS else find_helper()


def connection(plan: VmPlan) -> tuple[Socket, Socket]:
    """QEMU's end and the server's; the caller closes both. virtiofsd's is a listener with QEMU's end in its backlog."""
    if plan.share_fs != SHARE_VIRTIO_FS:
        return socketpair(AF_UNIX, SOCK_STREAM)
    listener, ours = Socket(AF_UNIX, SOCK_STREAM), Socket(AF_UNIX, SOCK_STREAM)
    try:
        # An abstract name that the kernel chooses, and a backlog of one: nobody else can connect.
        listener.bind("")
        listener.listen(0)
        ours.connect(listener.getsockname())
    except BaseException:
        listener.close()
        ours.close()
        raise
    return ours, listener


def server_command(plan: VmPlan, program: Path, socket: int) -> list[str]:
    """The arguments that run the server.

    Args:
        plan: says which directory, and how it is served.
        program: from `server_of`.
        socket: its end of the connection.
    """
    if plan.share_fs == SHARE_VIRTIO_FS:
        cache = {"never": "none"}.get(plan.virtiofsd_cache, plan.virtiofsd_cache)
        options = ("sandbox=chroot", "xattr", f"source={plan.share_dir}", f"cache={cache}")
        words = [word for option in options for word in ("-o", option)]
        # Its default limit takes CAP_SYS_RESOURCE.
        return [str(program), "-f", f"--fd={socket}", "--rlimit-nofile=0", *words, *plan.virtiofsd_args]
    return [str(program), "--nodaemon", "--path", str(plan.share_dir), "--fd", str(socket)]


class ShareHelper:
    """The running server of one VM: it ends with QEMU's end of the socket, with its parent, or by `stop`.

    Args:
        plan: says which directory, and how it is served.
        program: from `server_of`.
        socket: its end of the socket, from `connection`; stays the caller's.
        output: descriptor for its output.

    Raises:
        NotFound, OSError: it cannot be run; nothing is left of it.
    """

    def __init__(self, plan: VmPlan, program: Path, socket: int, *, output: int) -> None:
        self._pidfd = -1
        self._loop: AbstractEventLoop | None = None
        capabilities = _VIRTIOFSD_CAPABILITIES if plan.share_fs == SHARE_VIRTIO_FS else _CAPABILITIES
        self._process: subprocess.Popen[bytes] = confine.spawn(
            confine.confined(server_command(plan, program, socket), capabilities),
            fds=(socket,),
            output=output,
            environment=dict(plan.environment),
        )
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except BaseException:
            confine.end(self._process)
            raise

    def watch(self, loop: AbstractEventLoop, died: Callable[[], None]) -> None:
        """Have `died` called if it ends by itself; the guest has lost its shared tree then."""
        self._loop = loop
        loop.add_reader(self._pidfd, self._ended, died)

    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def _ended(self, died: Callable[[], None]) -> None:
        self._unwatch()
        died()

    def _unwatch(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._pidfd)
            self._loop = None

    def stop(self) -> None:
        """Kill it and reap it. Idempotent."""
        if self._pidfd >= 0:
            self._unwatch()
            confine.end(self._process)
            os.close(self._pidfd)
            self._pidfd = -1
