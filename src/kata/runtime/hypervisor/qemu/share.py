"""Who serves the shared tree: over 9p a helper of QEMU's, or QEMU itself; over virtio-fs virtiofsd.

QEMU 7.2, Debian 12's, can itself not create FIFOs and device nodes there (a socket is made the same way): the fix of
CVE-2023-2861 broke that, and a repair was posted upstream in December 2024. Its `virtfs-proxy-helper` can. Where there
is no helper, QEMU serves the files itself; versions other than 7.2 have not been tried. With the helper, QEMU needs no
capability at all, and what the guest reaches of the host's files is a process in a chroot.

virtiofsd (the one that comes with QEMU 7.2) serves its side of virtio-fs on memory that it shares with the guest. It
runs in a chroot as well: in a mount namespace of its own it would not see what is mounted into the tree later.
"""

from __future__ import annotations

import os
import signal
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
#: What it asks for at its start, and gives up but for those over files.
_CAPABILITIES = ("chown", "dac_override", "fowner", "fsetid", "mknod", "setgid", "setuid", "sys_chroot")
#: virtiofsd is killed by its own filter of system calls if it cannot give up capabilities as it wants to.
_VIRTIOFSD_CAPABILITIES = (*_CAPABILITIES, "setfcap", "setpcap")


def _find_helper() -> Path | None:
    """The helper's executable, or None where QEMU has none."""
    return next((path for path in _HELPERS if os.access(path, os.X_OK)), None)


def server_of(plan: VmPlan) -> Path | None:
    """The program that serves the plan's shared tree; None without a tree, or where QEMU serves it by itself.

    Looks at the host: which helpers it has.
    """
    if plan.share_dir is None:
        return None
    return plan.virtiofsd if plan.share_fs == SHARE_VIRTIO_FS else _find_helper()


def connection(plan: VmPlan) -> tuple[Socket, Socket]:
    """QEMU's end and the helper's. virtiofsd's is one that listens, with QEMU's in its backlog."""
    if plan.share_fs != SHARE_VIRTIO_FS:
        return socketpair(AF_UNIX, SOCK_STREAM)
    listener, ours = Socket(AF_UNIX, SOCK_STREAM), Socket(AF_UNIX, SOCK_STREAM)
    try:
        # To a name that the kernel makes up, and one place in the backlog: nobody else comes in.
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
        # Its default is a limit that only the host's administrator may set.
        return [str(program), "-f", f"--fd={socket}", "--rlimit-nofile=0", *words, *plan.virtiofsd_args]
    return [str(program), "--nodaemon", "--path", str(plan.share_dir), "--fd", str(socket)]


class ShareHelper:
    """The running helper of one machine: it ends with QEMU's end of the socket, with its parent, or by `stop`.

    Args:
        plan: says which directory, and how it is served.
        program: from `server_of`.
        socket: its end of the socket, from `connection`; stays the caller's.
        output: descriptor for what it says.
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
            self._process.kill()
            self._process.wait()
            raise

    def watch(self, loop: AbstractEventLoop, died: Callable[[], None]) -> None:
        """Have `died` called if it ends by itself; the guest's file system is gone then."""
        self._loop = loop
        loop.add_reader(self._pidfd, self._ended, died)

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
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._process.wait()
            os.close(self._pidfd)
            self._pidfd = -1
