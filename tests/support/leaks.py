"""What a sandbox may leave behind on the host: processes, mounts, sockets, state directories, cgroups, tap devices.

It is read from the kernel and not from the ledgers, to find leaks that no ledger has.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from kata.cli import gc
from kata.linux import mountinfo
from kata.linux.namespaces import CLONE_NEWNET, inside
from kata.runtime.ledger.journal import STATE_ROOT
from kata.runtime.ledger.processes import MARKER
from kata.shim.start import SOCKET_DIR
from tests.support.waiting import eventually

#: What the ids of sandboxes in tests begin with; two test runs at a time do not see each other's.
TEST_PREFIX = f"t{os.getpid()}"

#: Those of pods that containerd's CRI plugin makes, and of the network namespaces that it gives them.
POD_IDS = "[0-9a-f]{64}|cni-[0-9a-f-]{36}"

#: What ended a moment ago may still be on its way out, on a busy host for a while.
_SETTLE_S = 30.0
_POLL_S = 0.05
_CGROUPS = "/sys/fs/cgroup"
_NAMESPACES = Path("/run/netns")


def snapshot(ids: str) -> frozenset[str]:
    """Everything a sandbox could have left, one sentence each.

    Args:
        ids: what the ids of the sandboxes in question begin with, as a regular expression; others may come and go on
            the same host.
    """
    ours = re.compile(ids)
    kinds = (_processes(ours), _mounts(ours), _sockets(), _state(ours), _cgroups(ours), _taps(ours))
    return frozenset(itertools.chain.from_iterable(kinds))


def assert_nothing_left(before: frozenset[str], ids: str, *, within_s: float = _SETTLE_S) -> None:
    """Fail with a list of what is there now and was not in `before`.

    Raises:
        AssertionError: something stays longer than `within_s` seconds.
    """
    deadline = time.monotonic() + within_s
    while left := snapshot(ids) - before:
        if time.monotonic() > deadline:
            raise AssertionError("left behind:\n  " + "\n  ".join(sorted(left)))
        time.sleep(_POLL_S)


@contextmanager
def nothing_left(prefix: str) -> Iterator[None]:
    """Fail a test if its sandboxes leave something behind, and release that before the next test.

    Args:
        prefix: what their ids begin with.

    Raises:
        AssertionError: as `assert_nothing_left`.
    """
    before = snapshot(prefix)
    yield
    try:
        assert_nothing_left(before, prefix)
    finally:
        for sandbox_id in [name for name in gc.candidates() if name.startswith(prefix)]:
            gc.release(sandbox_id)


def _processes(ours: re.Pattern[str]) -> Iterator[str]:
    """Processes that carry a sandbox's marker, and shims by their command line."""
    marker = f"{MARKER}={STATE_ROOT}/"
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            command = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").split("\0")
            environment = Path(f"/proc/{entry}/environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        is_shim = any("containerd-shim-kata" in word for word in command[:3]) and any(
            flag == "-id" and ours.match(value) for flag, value in pairwise(command)
        )
        if is_shim or any(
            variable.startswith(marker) and ours.match(variable.removeprefix(marker)) for variable in environment
        ):
            yield f"process {entry}: {' '.join(command)[:200]}"


def _mounts(ours: re.Pattern[str]) -> Iterator[str]:
    """Mounts in this mount namespace, which is the host's."""
    for mount in mountinfo.read():
        if ours.search(mount.point):
            yield f"mount {mount.id} on {mount.point}"


def _sockets() -> Iterator[str]:
    """Sockets of shims that no process serves; their names are hashes, without the sandbox's id."""
    directory = Path(SOCKET_DIR)
    for path in directory.iterdir() if directory.is_dir() else ():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                yield f"socket {path}"
            except OSError:
                continue


def _state(ours: re.Pattern[str]) -> Iterator[str]:
    root = Path(STATE_ROOT)
    for path in root.iterdir() if root.is_dir() else ():
        if ours.match(path.name):
            yield f"state directory {path}"


def _cgroups(ours: re.Pattern[str]) -> Iterator[str]:
    for root, directories, _ in os.walk(_CGROUPS):
        for name in directories:
            if ours.match(name):
                yield f"cgroup {os.path.join(root, name)}"


def _taps(ours: re.Pattern[str]) -> Iterator[str]:
    """Tap devices of VMs in the pods' network namespaces, and in this one, where none should ever be."""
    namespaces = [Path("/proc/thread-self/ns/net")]
    names = sorted(_NAMESPACES.iterdir()) if _NAMESPACES.is_dir() else []
    namespaces += [path for path in names if ours.match(path.name)]
    for path in namespaces:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # removed since it was listed
        try:
            with inside(fd, CLONE_NEWNET):
                lines = Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines()
        except OSError:
            continue  # a name without a namespace; or this is not root, who alone could have made one
        finally:
            os.close(fd)
        for line in lines:
            name = line.partition(":")[0].strip()
            if name.startswith("tap") and name.endswith("_kata"):
                yield f"tap device {name} in {path}"


@contextmanager
def nothing_stays(prefix: str) -> Iterator[None]:
    """Hold the block to it that nothing of sandboxes whose ids begin with `prefix` is left; release what is.

    Sockets of shims have no names: they are not looked at.

    Raises:
        DeadlineExceeded: something is left.
    """
    try:
        yield
        eventually(lambda: snapshot(prefix), "nothing is left", lambda left: not any(prefix in one for one in left))
    finally:
        for sandbox_id in [name for name in gc.candidates() if name.startswith(prefix)]:
            gc.release(sandbox_id)
