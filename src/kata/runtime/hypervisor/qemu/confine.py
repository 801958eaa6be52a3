"""Confinement of a process: no new privileges, few capabilities, killed when its parent dies.

`setpriv` (util-linux) sets it up, which takes less than 1 ms and runs no Python between fork and exec. QEMU's own
seccomp filter (`-sandbox`) comes on top. Not here: namespaces, which are `apart`'s, QEMU's root (`jail`), and cgroups,
which are the sandbox's.

References: setpriv(1), capabilities(7), prctl(2) on PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import logging
import os
import resource
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from kata.errors import NotFound

log = logging.getLogger(__name__)

_SETPRIV = ("/usr/bin/setpriv", "/bin/setpriv")
#: What a 9p server needs to act for root in a container: the file capabilities that container engines grant by default.
#: Not DAC_READ_SEARCH, which opens files by handle, outside of any tree. Not MKNOD, so that no guest creates a device
#: node of the host.
SHARE_CAPABILITIES = ("chown", "dac_override", "fowner", "fsetid", "setfcap")
#: Each file that the guest has open in the shared tree takes a descriptor.
MAX_OPEN_FILES = 65536
#: Seconds for a child to end after SIGKILL. Usually it takes a millisecond.
_KILL_TIMEOUT_S = 1.0


def confined(argv: Sequence[str], capabilities: Iterable[str], *, secure_bits: str = "") -> list[str]:
    """`argv` in the wrapper that confines it. Looks at the host: where `setpriv` is.

    Args:
        argv: the command.
        capabilities: those that it keeps, in lower case and without "cap_".
        secure_bits: to set or clear, as setpriv(1) has them.

    Raises:
        NotFound: setpriv is not installed.
    """
    setpriv = next((path for path in _SETPRIV if os.access(path, os.X_OK)), None)
    if setpriv is None:
        raise NotFound("setpriv is not installed", hint="install the package util-linux")
    return [
        setpriv,
        "--no-new-privs",
        "--pdeathsig=SIGKILL",
        "--clear-groups",
        "--inh-caps=-all",
        *([f"--securebits={secure_bits}"] if secure_bits else []),
        f"--bounding-set={','.join(('-all', *(f'+{name}' for name in capabilities)))}",
        "--",
        *argv,
    ]


def jailed(argv: Sequence[str], setpriv: Sequence[str], uid: int, filter_: str) -> list[str]:
    """`argv` in the wrapper that confines it in a jail: a user and group id of its own, and no capability.

    Args:
        argv: the command.
        setpriv: the command that runs setpriv, of util-linux since 2.41.
        uid: the user and group id.
        filter_: path of the filter of system calls.
    """
    return [
        *setpriv,
        f"--reuid={uid}",
        f"--regid={uid}",
        "--clear-groups",
        "--no-new-privs",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--pdeathsig=KILL",
        f"--seccomp-filter={filter_}",
        "--",
        *argv,
    ]


def spawn(
    argv: Sequence[str],
    *,
    fds: Sequence[int],
    output: int,
    environment: Mapping[str, str],
    max_open_files: int = MAX_OPEN_FILES,
) -> subprocess.Popen[bytes]:
    """Run `argv` in a new session, with nothing but `fds` and `environment`.

    The kernel kills the child when the *thread* that calls this ends, so call it from one that lives as long as the VM
    should.

    Args:
        argv: the command, from `confined`.
        fds: descriptors that the child inherits under the same numbers.
        output: descriptor for standard output and standard error.
        environment: all of the child's variables.
        max_open_files: how many descriptors it may have, if the hard limit of this process allows as many.

    Raises:
        OSError: the executable cannot be run.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = max_open_files if hard == resource.RLIM_INFINITY else min(hard, max_open_files)
    # No core file: it would hold the guest's memory.
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_MEMLOCK: 0, resource.RLIMIT_NOFILE: files}
    with _inherited(limits):
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=dict(environment),
            pass_fds=tuple(fds),
            start_new_session=True,
        )
    try:
        for kind in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE):
            resource.prlimit(child.pid, kind, (limits[kind], limits[kind]))
    except ProcessLookupError:
        pass  # it has ended already: whoever waits for it learns why
    except PermissionError:
        # It has a user id of its own by now, and this process not CAP_SYS_RESOURCE: the inherited limits have to do.
        log.debug("cannot set the hard limits of process %d", child.pid)
    except BaseException:
        end(child)
        raise
    return child


@contextmanager
def _inherited(limits: Mapping[int, int]) -> Iterator[None]:
    """Have the children of the block inherit soft limits."""
    before = {kind: resource.getrlimit(kind) for kind in limits}
    try:
        for kind, soft in limits.items():
            resource.setrlimit(kind, (soft, before[kind][1]))
        yield
    finally:
        for kind, both in before.items():
            resource.setrlimit(kind, both)


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill a child and reap it. For one that hangs in the kernel nobody waits here: the ledger has it."""
    child.kill()
    try:
        child.wait(_KILL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        log.warning("process %d does not end %g s after SIGKILL", child.pid, _KILL_TIMEOUT_S)


def allow_locked_memory(pid: int) -> None:
    """Let QEMU, which has no capability, lock a guest's memory for DMA by a VFIO device.

    A failure is only logged: the limit may be high enough.
    """
    try:
        resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ProcessLookupError, PermissionError, ValueError) as error:
        log.warning("cannot raise the limit of locked memory of process %d: %s", pid, error)
