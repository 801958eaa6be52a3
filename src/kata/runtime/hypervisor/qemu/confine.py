"""QEMU's process from the outside: no new privileges, few capabilities, dead when its parent is.

`setpriv` (util-linux) sets it up, which takes under 1 ms and runs no Python between fork and exec. QEMU's own seccomp
filter (`-sandbox`) comes on top. Not here: namespaces and cgroups, which are the sandbox's.
"""

from __future__ import annotations

import logging
import os
import resource
import subprocess
from collections.abc import Iterable, Mapping, Sequence

from kata.errors import NotFound

log = logging.getLogger(__name__)

_SETPRIV = ("/usr/bin/setpriv", "/bin/setpriv")
#: What the 9p server needs to do for root in a container what root in a container may do to files: the capabilities
#: over files that engines give a container by default. Not DAC_READ_SEARCH, which opens files by handle, outside of
#: any tree. Not MKNOD, so that no guest makes a device of the host's.
SHARE_CAPABILITIES = ("chown", "dac_override", "fowner", "fsetid", "setfcap")
#: Each file that a guest has open on the shared tree takes a file descriptor.
_OPEN_FILES = 65536


def confined(argv: Sequence[str], capabilities: Iterable[str]) -> list[str]:
    """`argv` in the wrapper that confines it: a pure function but for the search for `setpriv`.

    Raises:
        NotFound: there is no setpriv.
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
        f"--bounding-set={','.join(('-all', *(f'+{name}' for name in capabilities)))}",
        "--",
        *argv,
    ]


def spawn(
    argv: Sequence[str], *, fds: Sequence[int], output: int, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Run `argv` in a session of its own, with nothing but `fds` and `environment`.

    The kernel kills the child when the *thread* that calls this ends, so call it from one that lives as long as the
    machine should.

    Args:
        argv: the command, as `confined` makes it.
        fds: descriptors that the child inherits under the same numbers.
        output: descriptor for standard output and standard error.
        environment: all of the child's variables.

    Raises:
        OSError: the executable cannot be run.
    """
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
        # No core file: it would hold the guest's memory.
        resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        files = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (files, files))
    except ProcessLookupError:
        pass  # dead already: whoever waits for it learns why
    except BaseException:
        child.kill()
        child.wait()
        raise
    return child


def allow_locked_memory(pid: int) -> None:
    """Let QEMU lock all memory of a guest with a device of the host, which writes there by DMA: it has no capability.

    That it cannot be done is only logged: the limit may do.
    """
    try:
        resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ProcessLookupError, PermissionError, ValueError) as error:
        log.warning("the limit of locked memory of the virtual machine cannot be raised: %s", error)
