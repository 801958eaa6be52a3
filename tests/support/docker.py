"""A private Docker: a dockerd of Debian's, unpacked and not installed, in a network namespace of its own.

What it sets up in the host's network (docker0, addresses, packet filter) is in that namespace, which ends with it. Its
containers are a private containerd's.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from kata.errors import DeadlineExceeded, FailedPrecondition
from tests.support.containerd import PrivateContainerd
from tests.support.packages import UNNEEDED, merge_usr, unpack

#: Docker's namespace of containerd.
NAMESPACE = "moby"
RUNTIME = "io.containerd.kata.v2"
_START_S = 30.0
_STOP_S = 15.0
_COMMAND_S = 60.0
_POLL_S = 0.05
#: Dependencies that this one does without: it is given a containerd, and no service is installed.
_UNNEEDED = (*UNNEEDED, "containerd", "adduser", "passwd", "systemd", "libsystemd-shared", "sysvinit-utils")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


#: Arguments: the root directory, in which the host's directories are to be seen, and the command.
_ENTER = """
ip link set lo up && mount --bind "$0" "$0" || exit
for name in dev proc sys run tmp var/tmp; do mkdir -p "$0/$name" && mount --rbind "/$name" "$0/$name" || exit; done
exec chroot "$0" "$@"
"""


def unpack_docker(directory: Path, suite: str = "") -> None:
    """Make a root directory with Docker and what it needs.

    Debian 12's, 20.10, takes runtimes with a path in its configuration only: shims by their name came with Docker 23.

    Args:
        directory: exists.
        suite: of Debian; "" for the guest image's.

    Raises:
        Unavailable, Internal: as `unpack`.
    """
    merge_usr(directory)
    unpack(directory, "docker.io", "docker-cli", "iptables", suite=suite, leave_out=_UNNEEDED)
    for name in ("iptables", "ip6tables"):
        (directory / "usr/sbin" / name).symlink_to("xtables-nft-multi")


class PrivateDocker:
    """A running dockerd; a context manager.

    Args:
        programs: its root directory, from `unpack_docker`.
        containerd: runs the containers; of the namespace NAMESPACE.
        directory: for everything that it has on disk, short.

    Attributes:
        pid: dockerd's.

    Raises:
        FailedPrecondition: it does not start; the message has the end of its log.
    """

    def __init__(self, programs: Path, containerd: PrivateContainerd, directory: Path) -> None:
        self._directory = directory
        self._socket = directory / "d.sock"
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("unshare", "--net", "--mount", "sh", "-c", _ENTER, str(programs)),
                    *("/usr/sbin/dockerd", "--host", f"unix://{self._socket}"),
                    *("--storage-driver", "vfs", "--containerd", str(containerd.address)),
                    *("--data-root", str(directory / "data"), "--exec-root", str(directory / "run")),
                    *("--pidfile", str(directory / "pid")),
                ],
                env={"PATH": _PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.pid = self._process.pid
        self._await(_START_S)

    def __enter__(self) -> PrivateDocker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _await(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.docker("version", check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                raise FailedPrecondition(f"dockerd does not start: {self.log_tail()}")
            time.sleep(_POLL_S)

    def log_tail(self, lines: int = 20) -> str:
        """The end of its log."""
        return " | ".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def docker(self, *arguments: str, check: bool = True, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        """Run `docker`.

        Args:
            *arguments: of it.
            check: whether a failure is an error.
            stdin: its input.

        Raises:
            FailedPrecondition: it failed; with what it said, and the end of dockerd's log.
            DeadlineExceeded: it hangs.
        """
        enter = ("nsenter", f"--target={self.pid}", "--mount", "--root")
        command = [*enter, "/usr/bin/docker", "--host", f"unix://{self._socket}", *arguments]
        environment = {"PATH": _PATH, "HOME": str(self._directory)}
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, timeout=_COMMAND_S, check=False, env=environment
            )
        except subprocess.TimeoutExpired:
            raise DeadlineExceeded(f"docker {' '.join(arguments)} hangs: {self.log_tail()}") from None
        out, error = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if check and done.returncode != 0:
            raise FailedPrecondition(f"docker {' '.join(arguments)}: {error.strip()}; {self.log_tail()}")
        return subprocess.CompletedProcess(command, done.returncode, out, error)

    def run(self, *arguments: str) -> str:
        """Start a container in the background; return its id."""
        return self.docker("run", "--detach", "--runtime", RUNTIME, *arguments).stdout.strip()

    def inside(self, *command: str) -> str:
        """What a command prints that is run where Docker has its host's side of the network."""
        words = ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command]
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=_COMMAND_S).stdout


def import_image(docker: PrivateDocker, rootfs: Path, name: str) -> None:
    """Make an image of a directory."""
    tar = subprocess.run(["tar", "--create", f"--directory={rootfs}", "."], check=True, capture_output=True).stdout
    docker.docker("import", "-", name, stdin=tar)


def address_of(docker: PrivateDocker, container: str, network: str) -> str:
    """A container's address on a network."""
    template = "{{(index .NetworkSettings.Networks " + f'"{network}"' + ").IPAddress}}"
    return docker.docker("inspect", "--format", template, container).stdout.strip()
