"""The host's mounts as they are now, for a process that has left them for a mount namespace of its own.

What the host mounts later reaches that namespace through shared mounts only. Where "/" is private, as the kernel makes
it and as it is in many containers, a volume that was mounted after a pod's start would be an empty directory there. So
the paths that a spec names are looked at and opened where they mean what the container engine means by them.

Not here: making the namespace, see `kata.runtime.launch.mount_namespace`. Sources: setns(2), mount_namespaces(7).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from kata.errors import FailedPrecondition
from kata.linux import namespaces

_T = TypeVar("_T")


class _Host(NamedTuple):
    """Descriptors of a mount namespace and of the root directory in it, which a chroot may have changed."""

    namespace: int
    root: int


_host: _Host | None = None


def remember_host() -> None:
    """Keep the mount namespace that this process is about to leave. Raises OSError."""
    global _host
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    _host = _Host(namespace, os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))


def on_host(function: Callable[..., _T], *arguments: object) -> _T:
    """Call a function among the host's mounts and return its result, or raise what it raises.

    Args:
        function: called in a thread, which is thrown away: another one could not be in two mount namespaces.
        arguments: of the call.

    Raises:
        FailedPrecondition: the kernel refuses.
    """
    if _host is None:
        return function(*arguments)
    # Not among the imports: a shim enters its namespace before it has loaded either.
    from concurrent.futures import Future
    from threading import Thread

    host, outcome = _host, Future[_T]()

    def call() -> None:
        try:
            _enter(host)
            outcome.set_result(function(*arguments))
        except BaseException as error:
            outcome.set_exception(error)

    thread = Thread(target=call, name="host mounts", daemon=True)
    thread.start()
    thread.join()
    return outcome.result()


def _enter(host: _Host) -> None:
    try:
        namespaces.unshare(namespaces.CLONE_FS)
        namespaces.setns(host.namespace, namespaces.CLONE_NEWNS)
        os.fchdir(host.root)
        os.chroot(".")
    except OSError as error:
        raise FailedPrecondition(f"cannot look at the host's mounts: {error.strerror or error}") from error
