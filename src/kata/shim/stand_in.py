"""The process that stands for a container on the host, whose own processes are in the VM.

containerd wants a process id for each container. Others tell containers apart by it, name its namespaces with it
(`kubectl debug --target` asks for the pid namespace /proc/PID/ns/pid), and kill it when nothing else helps. So each
container has a process that sleeps, in namespaces that are not the host's: the VMM's, and a pid namespace of its own.
It dies with the shim, and is the sandbox's by its environment as any other.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from kata.errors import FailedPrecondition
from kata.linux.namespaces import FLAGS, inside, inside_new
from kata.oci.spec import Spec
from kata.runtime.ledger.processes import MARKER

log = logging.getLogger(__name__)

_COMMAND = ("setpriv", "--pdeathsig=SIGKILL", "--no-new-privs", "--bounding-set=-all", "--", "sleep", "infinity")
#: Types of the namespaces that it shares with the VMM: what an engine puts into its network is the sandbox's.
_VMM_NAMESPACES = ("net", "ipc", "uts")
#: Seconds for it to end after SIGKILL.
_KILL_TIMEOUT_S = 1.0
_PID_NAMESPACE = re.compile(r"/proc/(\d+)/ns/pid")


class StandIn:
    """One such process.

    Args:
        directory: the sandbox's state directory.
        vmm: id of the VMM's process.

    Attributes:
        pid: its id. It stays the same after its end.

    Raises:
        FailedPrecondition: it cannot be run.
    """

    def __init__(self, directory: str, vmm: int) -> None:
        try:
            self._process = _spawn(directory, vmm)
        except OSError as error:
            raise FailedPrecondition(f"cannot run {' '.join(_COMMAND)}: {error.strerror}") from error
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._watching = False

    def watch(self, killed: Callable[[], object]) -> None:
        """Have `killed` called, in the running event loop, if somebody kills it."""
        self._watching = True
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended, killed)

    def _ended(self, killed: Callable[[], object]) -> None:
        self._unwatch()
        killed()

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            asyncio.get_running_loop().remove_reader(self._pidfd)

    def end(self) -> None:
        """Kill it and reap it. Idempotent."""
        if self._pidfd < 0:
            return
        self._unwatch()
        os.close(self._pidfd)
        self._pidfd = -1
        self._process.kill()
        try:
            self._process.wait(_KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("process %d, which stands for a container, does not end", self.pid)


def _spawn(directory: str, vmm: int) -> subprocess.Popen[bytes]:
    environment = {"PATH": os.defpath, MARKER: directory}

    def spawn() -> subprocess.Popen[bytes]:
        # In this thread, which lives as long as the shim: the kernel kills the child at its end.
        return subprocess.Popen(
            _COMMAND,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            start_new_session=True,
        )

    with ExitStack() as namespaces:
        for kind in _VMM_NAMESPACES:
            path = f"/proc/{vmm}/ns/{kind}"
            if os.stat(path).st_ino != os.stat(f"/proc/thread-self/ns/{kind}").st_ino:
                file = namespaces.enter_context(open(path, "rb"))
                namespaces.enter_context(inside(file.fileno(), FLAGS[kind]))
        namespaces.enter_context(inside_new("pid"))
        return spawn()


def target_of(spec: Spec, stand_ins: Mapping[str, StandIn]) -> str:
    """The id of the container whose pid namespace a container is to join; "" for none of these."""
    for entry in (spec.get("linux") or {}).get("namespaces") or ():
        match = _PID_NAMESPACE.fullmatch(str(entry.get("path") or ""))
        if entry.get("type") == "pid" and match:
            found = (name for name, stand_in in stand_ins.items() if stand_in.pid == int(match[1]))
            return next(found, "")
    return ""
