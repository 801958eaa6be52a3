"""The namespaces that QEMU and its helper run in: the pod's network namespace or new ones, never the host's.

A container engine is told QEMU's process id as every container's, and finds a container's namespaces by it: it sets up
/proc/PID/ns/net, and has other containers join …/ipc, …/uts or …/pid. With a VM the container's are in the guest. What
the engine finds instead must not be the host's.

Nothing holds these namespaces but the processes in them and descriptors, so that they end with the VM and its shim,
whatever killed those. The mount namespace is the sandbox's (`kata.runtime.launch.mount_namespace`).

References: namespaces(7); proc_pid_status(5) on NSpid.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from kata.linux.namespaces import CLONE_NEWNET, inside, inside_new

_NSPID = "NSpid:"


@contextmanager
def apart(network: str) -> Iterator[None]:
    """Run the block, which forks, with the calling thread in such namespaces of the types net, ipc and uts.

    Args:
        network: path of a network namespace; "" for a new one.

    Raises:
        OSError: there is no namespace at the path, or the kernel refuses.
    """
    if not network:
        with inside_new("net", "ipc", "uts"):
            yield
        return
    fd = os.open(network, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with inside(fd, CLONE_NEWNET), inside_new("ipc", "uts"):
            yield
    finally:
        os.close(fd)


def thread_ids(pid: int) -> dict[int, int]:
    """The ids of a process's threads by those that they have in its pid namespace, which it knows itself by."""
    found: dict[int, int] = {}
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/status", encoding="utf-8", errors="replace") as file:
                numbers = next((line.split() for line in file if line.startswith(_NSPID)), [])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        if len(numbers) > 1:
            found[int(numbers[-1])] = int(thread)
    return found
