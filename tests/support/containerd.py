"""A private containerd: for tests, the demonstration and the benchmark.

With the host's containerd it shares only /run/containerd/s, where the names of the shims' sockets are hashes that
include containerd's address. The CRI plugin is off by default, since most tests use the runtime through `ctr`.

Images are in `tests.support.images`, the check for leftovers is in `tests.support.leaks`.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kata.errors import DeadlineExceeded, FailedPrecondition, Internal, NotFound
from kata.linux import lock, mountinfo
from kata.runtime.ledger.journal import STATE_ROOT, Ledger, Locked
from kata.runtime.ledger.names import state_name
from kata.runtime.ledger.processes import processes_of
from kata.shim.launcher import write_launcher
from tests.support import evidence
from tests.support.waiting import at_most

#: The runtime's name for `ctr run --runtime`; its last two parts name the executable.
RUNTIME = "io.containerd.kata.v2"

# On a disk, and short: sockets are in it.
_PARENT = "/var/tmp"
_PREFIX = "kc-"
_LOCK = "lock"

_START_S = 20.0
_CTR_S = 15.0
_TERM_S = 5.0
_KILL_S = 5.0
_POLL_S = 0.02
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Variables of the caller that are passed on to the shim.
_PASSED_ON = ("KATA_CONF_FILE", "KATA_IMAGES")

_CONFIG = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [
    {disabled}
    "io.containerd.nri.v1.nri",  # of 2.x: its socket has one path for all
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{directory}/c.sock"

[ttrpc]
  address = "{directory}/c.ttrpc"

[debug]
  level = "{level}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
"""


#: As 1.x and 2.x call them.
_CRI_PLUGINS = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime")

#: Enables the CRI plugin, with the runtime handlers "kata" and "runc".
_CRI = """
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  stats_collect_period = 1
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{networks}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
    runtime_type = "io.containerd.kata.v2"
    privileged_without_host_devices = true
    pod_annotations = ["io.katacontainers.*"]
"""


@dataclass(frozen=True)
class CriOptions:
    """What the CRI plugin needs.

    Attributes:
        pause: name of the image of a pod's pause container.
        plugins: directory of CNI plugins.
        networks: directory of CNI configurations.
    """

    pause: str
    plugins: Path
    networks: Path


class PrivateContainerd:
    """A running containerd; a context manager that leaves nothing behind, whatever has happened to its containers.

    It is killed when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG).

    Args:
        environment: more variables for containerd and so for the shims; overrides what is passed on by default.
        debug: whether containerd and the shims log debug messages.
        namespace: containerd's, for all that `ctr` does here.
        cri: enables the CRI plugin.
        programs: a directory with containerd, ctr and its shims; None: those that are installed.

    Attributes:
        directory: everything it has on disk; short, because a socket path has room for 108 bytes (unix(7)).
        config: containerd's configuration, for who restarts it.
        bundle_root: where containerd keeps the bundles of this namespace.

    Raises:
        NotFound: containerd or ctr is not installed.
        FailedPrecondition: it does not start; the message has the end of its log.
    """

    def __init__(
        self,
        *,
        environment: Mapping[str, str] | None = None,
        debug: bool = False,
        namespace: str = "default",
        cri: CriOptions | None = None,
        programs: Path | None = None,
    ) -> None:
        self.namespace = namespace
        path = f"{programs}:{_SYSTEM_PATH}" if programs else _SYSTEM_PATH
        self._containerd = _executable("containerd", path)
        self._ctr = _executable("ctr", path)
        self._process: subprocess.Popen[bytes] | None = None
        _clear_abandoned()
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_PARENT))
        self._lock = lock.acquire(self.directory / _LOCK)
        self.address = self.directory / "c.sock"
        self.ttrpc_address = self.directory / "c.ttrpc"
        self.log_file = self.directory / "containerd.log"
        self.bundle_root = self.directory / "state/io.containerd.runtime.v2.task" / namespace
        self.config = self.directory / "config.toml"
        try:
            self.shim = write_launcher(self.directory / "bin")
            disabled = "" if cri else "".join(f'"{name}",' for name in _CRI_PLUGINS)
            text = _CONFIG.format(directory=self.directory, level="debug" if debug else "info", disabled=disabled)
            if cri:
                text += _CRI.format(pause=cri.pause, plugins=cri.plugins, networks=cri.networks)
            self.config.write_text(text, encoding="utf-8")
            self.environment = {
                "PATH": f"{self.shim.parent}:{path}",
                "HOME": "/root",
                **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                **(environment or {}),
            }
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PrivateContainerd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------ containerd

    @property
    def pid(self) -> int:
        """containerd's process id; 0 while it is stopped."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Run containerd and wait until it accepts calls; only needed after `stop`.

        Raises:
            FailedPrecondition: it ends, or does not accept calls in time.
        """
        evidence.follow(self.log_file)
        with open(self.log_file, "ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig=SIGKILL", "--", self._containerd, "--config", str(self.config)],
                cwd="/",
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while not self._listens():
            status = self._process.poll()
            if status is not None:
                self._process = None
                raise FailedPrecondition(f"containerd ended with status {status}: {self.log_tail(5)}")
            if time.monotonic() > deadline:
                raise FailedPrecondition(f"containerd does not accept calls after {_START_S:.0f} s: {self.log_tail(5)}")
            time.sleep(_POLL_S)

    def _listens(self) -> bool:
        # containerd listens on ttrpc first and on gRPC last, when all plugins are loaded.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self.address))
            except OSError:
                return False
        return True

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop containerd itself; shims and containers keep running, as when containerd is upgraded."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_TERM_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_KILL_S)

    def restart(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop containerd with a signal and run it again on the same state."""
        self.stop(number)
        self.start()

    def log_text(self) -> str:
        """Return the log of containerd and the shims."""
        try:
            return self.log_file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of the log, joined by " | ", for an error message."""
        return " | ".join(self.log_text().strip().splitlines()[-lines:])

    # ------------------------------------------------------------------------------------------------------------- ctr

    def upper(self, container_id: str) -> Path:
        """The directory of the host that a container's root is written to: its snapshot's upper directory.

        Raises:
            Internal: there is no such container.
        """
        mounts = self.ctr("snapshots", "mounts", "/nowhere", container_id).stdout
        found = re.search(r"upperdir=([^,\s]+)", mounts)
        assert found, mounts
        return Path(found[1])

    def ctr_command(self, *arguments: str) -> list[str]:
        """Return the command line of a `ctr` for this containerd."""
        return [self._ctr, "--address", str(self.address), "--namespace", self.namespace, *arguments]

    def ctr(
        self, *arguments: str, input: bytes | None = None, timeout: float = 60.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run ctr to its end.

        Args:
            arguments: of ctr.
            input: its standard input; None is /dev/null.
            timeout: seconds, after which ctr is killed; on a busy host it has more.
            check: whether a status other than 0 is an error.

        Returns:
            Status and output; bytes that are not UTF-8 are surrogates (`encode("utf-8", "surrogateescape")`).

        Raises:
            DeadlineExceeded: it did not end in time.
            Internal: it failed, and `check` is set.
        """
        what = f"ctr {' '.join(arguments)}"
        try:
            done = subprocess.run(
                self.ctr_command(*arguments),
                env=self.environment,
                stdin=subprocess.DEVNULL if input is None else None,
                input=input,
                capture_output=True,
                timeout=at_most(timeout),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = _text((error.stdout or b"") + (error.stderr or b"")).strip()
            raise DeadlineExceeded(
                f"{what} did not end within {error.timeout:.0f} s; its output: {said[-500:]!r}; "
                f"containerd's log ends with: {self.log_tail(10)}"
            ) from None
        if check and done.returncode != 0:
            said = _text(done.stdout + done.stderr).strip()
            raise Internal(
                f"{what} ended with status {done.returncode}: {said[-1000:]}; containerd's log ends with: "
                f"{self.log_tail(10)}"
            )
        return subprocess.CompletedProcess(done.args, done.returncode, _text(done.stdout), _text(done.stderr))

    def import_image(self, archive: Path, *, timeout: float = 120.0) -> list[str]:
        """Import and unpack an image archive; return the names of images that are new."""
        before = self._images()
        self.ctr("images", "import", str(archive), timeout=timeout)
        return [name for name in self._images() if name not in before]

    def _images(self) -> list[str]:
        return self.ctr("images", "ls", "--quiet").stdout.split()

    # ------------------------------------------------------------------------------------------------------------- end

    def shims(self) -> dict[int, str]:
        """Return the running shims of this containerd, of any runtime: sandbox id by process id."""
        return {pid: sandbox_id for pid, (sandbox_id, _) in _shims_of(str(self.address))}

    def state(self, sandbox_id: str) -> Path:
        """The state directory of a sandbox of this project's."""
        return Path(STATE_ROOT, state_name(sandbox_id, self.namespace))

    def kill_sandbox(self, sandbox_id: str, *, shim: bool, vm: bool) -> bool:
        """Send SIGKILL to a sandbox's shim, to its VM, or to both; return whether one that serves it was killed.

        A shim's `start` is killed, too, but may have left a shim that serves; one that deletes is left alone.
        """
        shims = [pid for pid, name in self.shims().items() if shim and name == sandbox_id and not _deletes(pid)]
        serving = [*filter(_leads_a_session, shims), *(processes_of(str(self.state(sandbox_id))) if vm else ())]
        for pid in {*shims, *serving}:
            _signal(pid, signal.SIGKILL)
        return bool(serving)

    def close(self) -> None:
        """End tasks, containerd, its shims and their VMs, and remove the directory. Idempotent."""
        if self._process is not None:
            self._delete_tasks()
        # The rest is killed; containerd first, because it would clean up after its shims at the same time.
        self.stop()
        evidence.end(self.log_file)
        _clear(self.directory)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _delete_tasks(self) -> None:
        """Delete tasks regularly, so that runtimes of any kind release what they hold."""
        try:
            for task in self.ctr("tasks", "ls", "--quiet", check=False, timeout=_CTR_S).stdout.split():
                self.ctr("tasks", "delete", "--force", task, check=False, timeout=_CTR_S)
        except DeadlineExceeded:
            pass  # a shim or containerd hangs, and is killed


def unique_id(prefix: str) -> str:
    """Return an id that is unique on this host, whose containerds share one directory of states."""
    return f"{prefix}-{secrets.token_hex(4)}"


def _clear(directory: Path) -> None:
    """Release what a containerd that has ended has left behind: shims, their sandboxes, mounts, files."""
    address = str(directory / "c.sock")
    shims = dict(_shims_of(address))
    for number, wait_s in ((signal.SIGTERM, _TERM_S), (signal.SIGKILL, _KILL_S)):
        for pid, _ in _shims_of(address):
            _signal(pid, number)
        _wait_until(lambda: not dict(_shims_of(address)), wait_s)
    for sandbox_id, namespace in shims.values():
        _release(f"{STATE_ROOT}/{state_name(sandbox_id, namespace)}")
    _unmount_beneath(directory)
    shutil.rmtree(directory, ignore_errors=True)


def _clear_abandoned() -> None:
    """Release what killed test runs have left behind: no process holds the lock on their directories."""
    for directory in Path(_PARENT).glob(f"{_PREFIX}*"):
        try:
            if directory.lstat().st_uid != os.geteuid():
                continue
            held = lock.acquire(directory / _LOCK, flags=0)
        except OSError:
            continue  # being created or removed
        if held is None:
            continue  # in use
        try:
            _clear(directory)
        finally:
            os.close(held)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _executable(name: str, path: str) -> str:
    found = shutil.which(name, path=path)
    if found is None:
        raise NotFound(f"{name} is not installed", hint="install the package containerd")
    return found


def _shims_of(address: str) -> Iterator[tuple[int, tuple[str, str]]]:
    """Process ids, each with the id and the namespace of its sandbox."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            arguments = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if (
            address in arguments
            and {"-id", "-namespace"} <= set(arguments[:-1])
            and any("containerd-shim" in word for word in arguments[:3])
        ):
            yield int(entry), (arguments[arguments.index("-id") + 1], arguments[arguments.index("-namespace") + 1])


def _deletes(pid: int) -> bool:
    try:
        return b"delete" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _leads_a_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _release(directory: str) -> None:
    """Release what a sandbox held whose shim was killed."""
    if not os.path.isdir(directory):
        return
    try:
        Ledger(directory, wait_s=_KILL_S).release()
    except Locked:
        pass  # another sandbox with that id


def _unmount_beneath(directory: Path) -> None:
    for point in mountinfo.points_below(str(directory)):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True, timeout=_KILL_S)
