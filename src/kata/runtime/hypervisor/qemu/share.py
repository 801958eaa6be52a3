"""The server of the shared tree: over 9p QEMU's helper or QEMU itself, over virtio-fs virtiofsd.

QEMU 7.2 cannot create FIFOs, sockets and device nodes there by itself: the fix of CVE-2023-2861 broke that. Its
`virtfs-proxy-helper` can. With the helper, QEMU needs no capability at all, and a guest that breaks out of 9p is in a
process in a chroot. QEMU 10 has no helper any more and is repaired; it serves the files itself, all but device nodes,
for which it is not given the capability.

The helper creates each file with the owner's user and group id, and gives up capabilities for that time. To get them
back it relies on its user id returning to 0, which it has never left if just the group is another one: it goes on
without them, and aborts at the next such file. So it must not change capabilities at all: the kernel is told not to
(SECBIT_NO_SETUID_FIXUP), and a filter of system calls answers its capset(2) without doing anything.

virtiofsd works on memory that it shares with the guest. It is the guest image's, the same on every host. It runs in a
chroot, too: in a mount namespace of its own it would not see later mounts in the tree.

References: capabilities(7); seccomp(2); setpriv(1) of util-linux 2.41; virtiofsd's README.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socketpair
from socket import socket as Socket

from kata.errors import NotFound
from kata.runtime.hypervisor.base import SHARE_VIRTIO_FS, VmPlan
from kata.runtime.hypervisor.qemu import confine, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

_HELPERS = (Path("/usr/lib/qemu/virtfs-proxy-helper"), Path("/usr/libexec/virtfs-proxy-helper"))
#: What the helper needs, and keeps.
_CAPABILITIES = ("chown", "dac_override", "fowner", "fsetid", "mknod", "setgid", "setuid", "sys_chroot")
#: virtiofsd also sets file capabilities and opens files by handle, so that not every file that the guest remembers
#: takes a descriptor. It drops the rest when it is in its chroot.
_VIRTIOFSD_CAPABILITIES = (*_CAPABILITIES, "dac_read_search", "setfcap", "setpcap")

#: On a file system without file handles (overlayfs) each file that the guest remembers takes a descriptor, too.
_VIRTIOFSD_MAX_OPEN_FILES = 1 << 20

# Of the guest image, as `kata.osbuilder.host_programs` lays them out.
_LOADER, _VIRTIOFSD = "ld-linux-x86-64.so.2", "virtiofsd"
SETPRIV = "setpriv"

#: The 9p helper's filter: capset(2) does nothing and succeeds.
HELPER_FILTER = seccomp.bpf({seccomp.CAPSET: 0, **seccomp.DENIED})


def find_helper() -> Path | None:
    """The 9p helper's executable, or None if QEMU comes without."""
    return next((path for path in _HELPERS if os.access(path, os.X_OK)), None)


def server_of(plan: VmPlan) -> Path | None:
    """The program that serves the plan's shared tree; None without a tree, or where QEMU serves it by itself.

    Looks at the host: which helpers it has.

    Raises:
        NotFound: virtiofsd, or what the helper is run by, does not exist.
    """
    if plan.share_dir is None:
        return None
    if plan.share_fs == SHARE_VIRTIO_FS:
        if plan.virtiofsd is not None:
            if not os.access(plan.virtiofsd, os.X_OK):
                raise NotFound(
                    f"virtiofsd: {plan.virtiofsd} is not an executable file",
                    hint="set virtio_fs_daemon in the configuration",
                )
            return plan.virtiofsd
        server, needed = plan.programs / _VIRTIOFSD, _VIRTIOFSD
    else:
        helper = find_helper()
        if helper is None:
            return None
        server, needed = helper, SETPRIV
    check_program(plan, needed)
    return server


def check_program(plan: VmPlan, name: str) -> None:
    """Check that a program of the guest image, and its loader, are there.

    Raises:
        NotFound: one is missing.
    """
    for path in (plan.programs / _LOADER, plan.programs / name):
        if not path.is_file():
            raise NotFound(f"{name} of the guest image: {path} does not exist", hint="run: kata image build")


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


def server_command(
    plan: VmPlan, program: Path, socket: int, filter_: int = -1, directory: Path | None = None
) -> list[str]:
    """The arguments that run the server.

    Args:
        plan: says which directory, and how it is served.
        program: from `server_of`.
        socket: its end of the connection.
        filter_: descriptor of a file with HELPER_FILTER, for the 9p helper.
        directory: what it serves; None for the shared tree.
    """
    directory = directory or plan.share_dir
    if plan.share_fs == SHARE_VIRTIO_FS:
        return [
            *([str(program)] if program == plan.virtiofsd else of_image(plan, _VIRTIOFSD)),
            f"--fd={socket}",
            f"--shared-dir={directory}",
            "--sandbox=chroot",
            f"--cache={plan.virtiofsd_cache}",
            # Of mounts that are announced the guest's kernel makes file systems of their own, another one in each
            # container: a file would be several. Nor would they have access control lists.
            "--no-announce-submounts",
            "--posix-acl",
            "--xattr",
            "--inode-file-handles=prefer",
            # Its default limit takes CAP_SYS_RESOURCE.
            "--rlimit-nofile=0",
            "--log-level=warn",
            *plan.virtiofsd_args,
        ]
    return [
        *of_image(plan, SETPRIV),
        f"--seccomp-filter=/proc/self/fd/{filter_}",
        "--",
        *(str(program), "--nodaemon", "--path", str(directory), "--fd", str(socket)),
    ]


def of_image(plan: VmPlan, name: str) -> list[str]:
    """The command that runs a program of the guest image with loader and libraries of its own suite (ld.so(8))."""
    loader = [str(plan.programs / _LOADER), "--inhibit-cache", "--library-path", str(plan.programs)]
    return [*loader, "--argv0", name, str(plan.programs / name)]


def _spawn(plan: VmPlan, program: Path, socket: int, output: int, directory: Path | None) -> subprocess.Popen[bytes]:
    environment = dict(plan.environment)
    if plan.share_fs == SHARE_VIRTIO_FS:
        command = confine.confined(server_command(plan, program, socket), _VIRTIOFSD_CAPABILITIES)
        return confine.spawn(
            command,
            fds=(socket,),
            output=output,
            environment=environment,
            max_open_files=_VIRTIOFSD_MAX_OPEN_FILES,
        )
    filter_ = os.memfd_create("filter", os.MFD_CLOEXEC)
    try:
        os.pwrite(filter_, HELPER_FILTER, 0)
        command = server_command(plan, program, socket, filter_, directory)
        command = confine.confined(command, _CAPABILITIES, secure_bits="+no_setuid_fixup")
        return confine.spawn(command, fds=(socket, filter_), output=output, environment=environment)
    finally:
        os.close(filter_)


class ShareHelper:
    """The running server of one VM: it ends with QEMU's end of the socket, with its parent, or by `stop`.

    Args:
        plan: says which directory, and how it is served.
        program: from `server_of`.
        socket: its end of the socket, from `connection`; stays the caller's.
        output: descriptor for its output.
        directory: what it serves; None for the shared tree.

    Raises:
        NotFound, OSError: it cannot be run; nothing is left of it.
    """

    def __init__(self, plan: VmPlan, program: Path, socket: int, *, output: int, directory: Path | None = None) -> None:
        self._pidfd = -1
        self._loop: AbstractEventLoop | None = None
        self._process = _spawn(plan, program, socket, output, directory)
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except BaseException:
            confine.end(self._process)
            raise

    def watch(self, loop: AbstractEventLoop, died: Callable[[], None]) -> None:
        """Have `died` called if it ends by itself; the guest has lost its shared tree then."""
        self._loop = loop
        loop.add_reader(self._pidfd, self._ended, died)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

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
