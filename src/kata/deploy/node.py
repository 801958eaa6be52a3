"""The node that the container is on: its root file system, mounted in the container, and programs run in it.

Programs run by chroot and not in the namespaces of the node's processes: that needs one mount and one capability, where
the other way needs the node's PIDs and all capabilities.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kata.command import PATH, run
from kata.errors import DeadlineExceeded, FailedPrecondition, Internal, KataError
from kata.linux.openat2 import openat2

#: What compiled modules of the archive are for, and what the sources need.
_OLDEST_PYTHON = (3, 11)
_QEMU = "/usr/bin/qemu-system-x86_64"
_TIMEOUT_S = 120.0
#: containerd ends its shims' connections, and asks all of them again.
_RESTART_TIMEOUT_S = 120.0
_POLL_S = 2.0


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        root: its root file system, here.
        service: of systemd, by which containerd is restarted there.
    """

    root: Path
    service: str = "containerd"

    def path(self, name: str) -> Path:
        """Where a path of the node is here; links in it are followed as on the node, but for its last part.

        Directories on the way need not exist.

        Args:
            name: absolute, e.g. "/opt/kata".

        Raises:
            FailedPrecondition: a part of it is no directory, or cannot be entered.
        """
        parent = PurePosixPath(name).parent
        if str(parent) == "/":
            return self.root / name.lstrip("/")
        root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = openat2(root, str(parent), os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            return self.path(str(parent)) / PurePosixPath(name).name
        except OSError as error:
            raise FailedPrecondition(f"{parent} of the node: {(error.strerror or '').lower()}") from None
        finally:
            os.close(root)
        try:
            return Path(os.readlink(f"/proc/self/fd/{fd}")) / PurePosixPath(name).name
        finally:
            os.close(fd)

    def run(self, *argv: str, timeout: float = _TIMEOUT_S) -> str:
        """Run a program of the node in its root; returns what it prints.

        Args:
            *argv: program, by its path there, and arguments.
            timeout: seconds.

        Raises:
            KataError: as `kata.command.run`.
        """
        # systemctl(1) would refuse to work in a chroot, unless told that it is meant.
        environment = {"PATH": f"/usr/local/sbin:/usr/local/bin:{PATH}", "SYSTEMD_IGNORE_CHROOT": "1"}
        return run(["unshare", f"--root={self.root}", "--wd=/", *argv], timeout=timeout, env=environment)

    def kata(self, prefix: str, *arguments: str) -> str:
        """Run `kata` of a tree on the node; returns what it prints.

        Raises:
            FailedPrecondition: what it has said.
            DeadlineExceeded: it did not end.
        """
        try:
            return self.run(f"{prefix}/bin/kata", *arguments)
        except Internal as error:
            words, _, hint = error.message.partition("kata: ")[2].partition(" | hint: ")
            raise FailedPrecondition(
                f"kata {' '.join(arguments[:2])}: {words or error.message}", hint=hint or None
            ) from None

    def check(self) -> None:
        """See that the runtime can run there at all.

        Raises:
            FailedPrecondition: it lacks something.
        """
        if not self.path("/usr").is_dir() or not self.path("/etc").is_dir():
            raise FailedPrecondition(
                f"{self.root} is not a node's root file system", hint="mount the node's / there (hostPath)"
            )
        needs = "nodes have to be Debian 12 or 13 on x86_64"
        try:
            said = self.run("/usr/bin/python3", "-ISc", "import sys; print(*sys.version_info[:2])")
            version = tuple(map(int, said.split()))
        except (KataError, ValueError) as error:
            raise FailedPrecondition(
                f"the node's /usr/bin/python3 does not run: {error}", hint=f"{needs}; run: apt-get install python3"
            ) from None
        if version < _OLDEST_PYTHON:
            raise FailedPrecondition(f"the node has Python {'.'.join(map(str, version))}", hint=needs)
        if not self.path(_QEMU).exists():
            raise FailedPrecondition(
                f"the node has no {_QEMU}",
                hint="there, run: apt-get install --no-install-recommends qemu-system-x86 erofs-utils",
            )

    def engine(self) -> str:
        """Which containerd runs there, as its process's id and start, or those of several; "" for none."""
        found = []
        for directory in sorted(self.path("/proc").glob("[0-9]*")):
            try:
                words = (directory / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue  # it has ended
            # proc_pid_stat(5): "1234 (containerd) S …", in whose name there may be anything.
            pid, _, rest = words.partition(" (")
            name, _, fields = rest.rpartition(") ")
            if name == "containerd":
                found.append(f"{pid}@{fields.split()[19]}")
        return " ".join(found)

    def restart_engine(self) -> None:
        """Have containerd read its configuration.

        Raises:
            FailedPrecondition: it does not start.
        """
        try:
            self.run("systemctl", "restart", self.service, timeout=_RESTART_TIMEOUT_S)
        except (Internal, DeadlineExceeded) as error:
            raise FailedPrecondition(
                f"{self.service} cannot be restarted: {error.message}",
                hint=f"on the node, look at: journalctl --unit {self.service}",
            ) from None

    def await_engine(self, stale: str, within_s: float | None, pause: Callable[[float], object] = time.sleep) -> None:
        """Wait until another containerd runs than one that does not know of a change.

        Args:
            stale: that one.
            within_s: seconds; None for as long as it takes.
            pause: waits for some seconds; may raise, which ends the wait.

        Raises:
            DeadlineExceeded: it still runs, or none does.
        """
        deadline = None if within_s is None else time.monotonic() + within_s
        while (now := self.engine()) in ("", stale):
            if deadline is not None and time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"containerd {'has not been restarted' if now else 'does not run'} within {within_s:.0f} s",
                    hint=f"on the node, run: systemctl restart {self.service}",
                )
            pause(_POLL_S)
