"""Who serves the shared tree over 9p: a helper of QEMU's, in a chroot of that tree, or QEMU itself.

QEMU 7.2, Debian 12's, can itself not create FIFOs and device nodes there (a socket is made the same way): the fix of
CVE-2023-2861 broke that, and a repair was posted upstream in December 2024. Its `virtfs-proxy-helper` can. Where there
is no helper, QEMU serves the files itself; versions other than 7.2 have not been tried. With the helper, QEMU needs no
capability at all, and what the guest reaches of the host's files is a process in a chroot.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from kata.hypervisor.qemu import confine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

_HELPERS = (Path("/usr/lib/qemu/virtfs-proxy-helper"), Path("/usr/libexec/virtfs-proxy-helper"))
#: What it asks for at its start, and gives up but for those over files.
_CAPABILITIES = ("chown", "dac_override", "fowner", "fsetid", "mknod", "setgid", "setuid", "sys_chroot")


def find_helper() -> Path | None:
    """The helper's executable, or None where QEMU has none."""
    return next((path for path in _HELPERS if os.access(path, os.X_OK)), None)


class ShareHelper:
    """The running helper of one machine: it ends with QEMU's end of the socket, with its parent, or by `stop`.

    Args:
        helper: its executable.
        directory: the shared tree.
        socket: its end of the socket; stays the caller's.
        output: descriptor for what it says.
        environment: all of its variables.
    """

    def __init__(
        self,
        helper: Path,
        directory: Path,
        socket: int,
        *,
        output: int,
        environment: dict[str, str],
    ) -> None:
        self._pidfd = -1
        self._loop: AbstractEventLoop | None = None
        argv = [str(helper), "--nodaemon", "--path", str(directory), "--fd", str(socket)]
        self._process: subprocess.Popen[bytes] = confine.spawn(
            confine.confined(argv, _CAPABILITIES), fds=(socket,), output=output, environment=environment
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
