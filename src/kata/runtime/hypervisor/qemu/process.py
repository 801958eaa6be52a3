"""QEMU's process and its helpers', started and not yet watched: the part of a VM that needs no event loop.

A shim starts QEMU before it has loaded asyncio and the QMP client (`kata.runtime.launch.prelaunch`). QMP, the guest's
console and every channel run over socket pairs whose other ends QEMU inherits: no socket files, no races, nothing that
others can connect to.

Not here: watching the process, and commands (`kata.runtime.hypervisor.qemu.vm`).

Reference: QEMU's docs/devel/migration.rst, "x-ignore-shared".
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import subprocess
from collections.abc import Iterable
from functools import partial

from kata.linux.namespaces import inside_new
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.memory import SealedCopy, copy_memory, memory_to_share
from kata.runtime.hypervisor.qemu import confine, jail, seccomp
from kata.runtime.hypervisor.qemu.apart import apart
from kata.runtime.hypervisor.qemu.command import (
    CONSOLE_FD,
    MEMORY_FD,
    QMP_FD,
    RESTORE_FD,
    ROOT_FD,
    SHARE_FD,
    STATE_FD,
    STATE_FDSET,
    command_line,
)
from kata.runtime.hypervisor.qemu.jail_uid import JailUid
from kata.runtime.hypervisor.qemu.share import SETPRIV, ShareHelper, check_program, of_image, server_of
from kata.runtime.hypervisor.qemu.share import connection as share_connection

#: The other ends of SHARE_FD and ROOT_FD.
_HELPER_FD, _ROOT_HELPER_FD = ":helper", ":root-helper"
_FILTER = seccomp.bpf(seccomp.DENIED_TO_QEMU)


def restore_commands(state: int, *, from_file: bool = False) -> list[dict[str, object]]:
    """The QMP commands by which QEMU restores a state, and resumes.

    The memory is not part of the state: it is in the template's memory file.

    Args:
        state: QEMU's descriptor of it.
        from_file: the command line has put it into STATE_FDSET, for QEMU since MAPS_READ_ONLY_SINCE.
    """
    capability = {"capability": "x-ignore-shared", "state": True}
    uri = f"file:/dev/fdset/{STATE_FDSET}" if from_file else f"fd:{state}"
    return [
        {"execute": "qmp_capabilities"},
        {"execute": "migrate-set-capabilities", "arguments": {"capabilities": [capability]}},
        {"execute": "migrate-incoming", "arguments": {"uri": uri}},
    ]


class QemuProcess:
    """QEMU, running. It ends by `kill`, or with the thread that created it.

    Args:
        plan: the VM.
        memory: descriptor of a file that is the guest's memory; with `state`, of a saved VM's memory, which QEMU opens
            for reading if the descriptor is for reading only, and otherwise never sees: it gets a copy of it.
        state: descriptor of a saved VM's state to restore. Both stay the caller's.

    Attributes:
        popen, pidfd: the process.
        argv: its command line.
        channels: the host's ends of the plan's channels and of QMP_FD; with a state, also of RESTORE_FD, a monitor on
            which the restore has been requested already, so that QEMU reads the state as soon as it can.
        console, output: descriptors of the guest's console and of QEMU's output; -1 once they are taken over.
        helpers: the programs that serve the shared tree and, second, a root; none if QEMU does.
        uid: QEMU's user and group id in its jail; None if it runs as root.

    Raises:
        NotFound, OSError: it cannot be run; nothing is left of it.
    """

    def __init__(self, plan: VmPlan, *, memory: int | None = None, state: int | None = None) -> None:
        self.channels: dict[str, socket.socket] = {}
        self.helpers: list[ShareHelper] = []
        self.console = self.output = self.pidfd = -1
        self.argv: list[str] = []
        self._sealed: SealedCopy | None = None
        self.uid: JailUid | None = None
        popen = None
        theirs: dict[str, socket.socket] = {}
        write_end = copy = -1
        try:
            names = [QMP_FD, CONSOLE_FD, *plan.channels]
            if state is not None:
                names.append(RESTORE_FD)
            for name in names:
                self.channels[name], theirs[name] = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                self.channels[name].setblocking(False)
            self.output, write_end = os.pipe()
            read_only = memory is not None and fcntl.fcntl(memory, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            saved = memory
            if plan.shares_memory and not plan.huge_pages and (state is not None or memory is None):
                memory = copy = memory_to_share(plan.memory_mib)
            elif state is not None and saved is not None and not read_only:
                self._sealed = SealedCopy(saved, plan.run_dir)
                memory = self._sealed.memory
            files = {MEMORY_FD: memory, STATE_FD: state}
            fds = {name: end.fileno() for name, end in theirs.items()}
            fds |= {name: fd for name, fd in files.items() if fd is not None}
            server = server_of(plan)
            if server:
                theirs[SHARE_FD], theirs[_HELPER_FD] = share_connection(plan)
                fds[SHARE_FD] = theirs[SHARE_FD].fileno()
                if plan.root_dir:
                    theirs[ROOT_FD], theirs[_ROOT_HELPER_FD] = share_connection(plan)
                    fds[ROOT_FD] = theirs[ROOT_FD].fileno()
            self.argv = command_line(plan, fds, read_only_memory=read_only)
            serves = bool(plan.share_dir and not server)
            # Runs a program, perhaps: not in the pid namespace, of which QEMU has to be the first process.
            root = None if serves or not plan.jail_uids else jail.root_of(plan, _FILTER)
            with apart(plan.network):
                # In a pid namespace of its own, whose other processes would end with it.
                with inside_new("pid", "cgroup"):
                    popen = self._spawn(plan, root, fds.values(), write_end, serves=serves)
                if plan.devices:
                    confine.allow_locked_memory(popen.pid)
                if server:
                    # After QEMU, which takes a while until it needs its helpers.
                    for directory, name in ((plan.share_dir, _HELPER_FD), (plan.root_dir, _ROOT_HELPER_FD)):
                        if directory:
                            fd = theirs[name].fileno()
                            helper = ShareHelper(plan, server, fd, output=write_end, directory=directory)
                            self.helpers.append(helper)
            if state is not None:
                # While QEMU makes the VM: it does not look at the memory before it restores the state.
                if saved is not None and copy >= 0:
                    copy_memory(saved, copy)
                if self._sealed is not None:
                    self._sealed.complete()
                wanted = restore_commands(state, from_file=read_only)
                self.channels[RESTORE_FD].send("\n".join(map(json.dumps, wanted)).encode() + b"\n")
            self.pidfd = os.pidfd_open(popen.pid)
            self.console = self.channels.pop(CONSOLE_FD).detach()
            self.popen: subprocess.Popen[bytes] = popen
        except BaseException:
            if popen is not None:
                confine.end(popen)
            self.release()
            raise
        finally:
            for end in theirs.values():
                end.close()
            for fd in (write_end, copy):
                if fd >= 0:
                    os.close(fd)

    def _spawn(
        self, plan: VmPlan, root: jail.Root | None, fds: Iterable[int], output: int, *, serves: bool
    ) -> subprocess.Popen[bytes]:
        spawn = partial(confine.spawn, fds=tuple(fds), output=output, environment=dict(plan.environment))
        if root is None:
            return spawn(confine.confined(self.argv, confine.SHARE_CAPABILITIES if serves else ()))
        check_program(plan, SETPRIV)
        self.uid = JailUid(plan.jail_uids)
        with jail.inside(root, self.uid.number):
            return spawn(confine.jailed(self.argv, of_image(plan, SETPRIV), self.uid.number, jail.FILTER))

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self.popen.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended yet, reaped or not."""
        if self.pidfd < 0:
            return False
        ended = select.poll()
        ended.register(self.pidfd, select.POLLIN)
        return not ended.poll(0)

    def kill(self) -> None:
        """Kill and reap it, and release everything. Only for a process that nobody watches."""
        confine.end(self.popen)
        self.release()

    def release(self) -> None:
        """Stop the helpers and close all descriptors. Idempotent."""
        for helper in self.helpers:
            helper.stop()
        if self.uid is not None:
            self.uid.release()
        for end in self.channels.values():
            end.close()
        self.channels.clear()
        if self._sealed is not None:
            self._sealed.close()
        for fd in (self.console, self.output, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.console = self.output = self.pidfd = -1
