"""`kata run` as a user has it: the real command, real virtual machines, and nothing left afterwards."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import pytest

from kata.cli import gc
from kata.cli.gc import RUN_ROOT
from kata.runtime.config.settings import UPPER
from kata.runtime.hypervisor.qemu.share import find_helper
from kata.runtime.images.model import ImageConfig
from kata.runtime.ledger.journal import STATE_ROOT
from kata.runtime.ledger.processes import MARKER
from kata.runtime.network.cni import CONFIGURATIONS
from tests.support import appending, leaks
from tests.support.cni import PLUGINS, Bridge
from tests.support.images import busybox_rootfs, write_oci_archive
from tests.support.mounts import in_mount_namespace
from tests.support.terminal import on_a_terminal
from tests.support.waiting import eventually

pytestmark = [pytest.mark.vm, pytest.mark.timeout(180)]

KATA = str(Path(sys.executable).with_name("kata"))
PREFIX = f"{leaks.TEST_PREFIX}r{os.getpid()}-"
TIMEOUT_S = 120.0

_names = (f"{PREFIX}{number}" for number in itertools.count())


@pytest.fixture
def name() -> str:
    return next(_names)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    with leaks.nothing_stays(PREFIX):
        yield
    assert not list(RUN_ROOT.glob(f"{PREFIX}*"))


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rootfs")
    directory.chmod(0o755)  # it becomes the root directory of users who are not root
    busybox_rootfs(directory)
    with (directory / "etc/passwd").open("a") as passwd:
        passwd.write("joe:x:1000:1000::/home/joe:/bin/sh\n")
    with (directory / "etc/group").open("a") as group:
        group.write("joe:x:1000:\nwheel:x:10:joe\n")
    return directory


@pytest.fixture(scope="module")
def image(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ImageConfig(
        entrypoint=("/bin/sh", "-c"),
        cmd=("echo from the image",),
        env=("PATH=/bin", "COLOR=blue"),
        user="joe",
        working_dir="/tmp",
    )
    return write_oci_archive(rootfs, config, tmp_path_factory.mktemp("image") / "image.tar", "example:1")


def kata(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    settings: dict[str, object] = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": TIMEOUT_S}
    if "input" in options or "stdout" in options:
        settings.pop("stdin" if "input" in options else "capture_output")
    return subprocess.run([KATA, *map(str, arguments)], check=False, **{**settings, **options})  # type: ignore[call-overload, no-any-return]


class Start(Protocol):
    def __call__(self, *arguments: str | Path, **options: object) -> subprocess.Popen[bytes]: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `kata` in the background; at the end of the test it is gone."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str | Path, **options: object) -> subprocess.Popen[bytes]:
        settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        started.append(subprocess.Popen([KATA, *map(str, arguments)], **settings))  # type: ignore[call-overload]
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(10)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def vms(name: str) -> list[int]:
    """Ids of the processes that belong to a sandbox."""
    wanted = f"{MARKER}={STATE_ROOT}/{name}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def read_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


# ---------------------------------------------------------------------------------------------------- what it runs


def test_files_of_every_kind_in_the_root_directory(name: str, rootfs: Path) -> None:
    script = """
        cd /root; mkfifo f; mknod n c 1 3 || mkfifo n
        echo a >a; ln a b; ln -s a c; mv a d; stat -c '%n %F %h' b c d f n
        cat f & echo through >f; wait
        exec 3<>u; rm u; echo kept >&3; rm -r /root/*
    """
    done = kata("run", "--name", name, "--rootfs", rootfs, "--", "/bin/sh", "-c", script)
    assert done.stdout.decode().splitlines() == [
        "b regular file 2",
        "c symbolic link 1",
        "d regular file 2",
        "f fifo 1",
        f"n {'character special file' if find_helper() else 'fifo'} 1",
        "through",
    ], done.stderr
    assert not list((rootfs / "root").iterdir())


def test_nothing_that_is_appended_is_lost(name: str, rootfs: Path) -> None:
    """While another program asks for the length of the file, in the shared tree over 9p."""
    done = kata("run", "--name", name, "--rootfs", rootfs, "--", "/bin/sh", "-c", appending.script("/root/appending"))
    shutil.rmtree(rootfs / "root/appending")
    assert appending.lost(done.stdout.decode()) == 0, done.stderr


def test_the_container_is_what_was_asked_for(rootfs: Path, name: str, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o777)
    volume.chmod(0o777)
    (volume / "file").write_text("of the host\n")
    script = """
        echo "$(id)|$(pwd)|$A|$PASSED|$(hostname)|$(tty)"
        cat /vol/file; echo of the guest > /vol/new; echo no > /ro/no
        cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max
        cat; uname -r >&2; exit 42
    """
    result = kata(
        "run", "--rootfs", rootfs, "--name", name, "--rm", "-e", "A=1 2", "-e", "PASSED", "-u", "joe", "-w", "/tmp",
        "-v", f"{volume}:/vol", "-v", f"{volume}:/ro:ro", "--memory", "64M", "--cpus", "0.5", "--", "sh", "-c", script,
        env={**os.environ, "PASSED": "on"},
    )  # fmt: skip
    lines = result.stdout.decode().splitlines()
    assert result.returncode == 42, result.stderr
    assert lines[0] == f"uid=1000(joe) gid=1000(joe) groups=10(wheel),1000(joe)|/tmp|1 2|on|{name}|not a tty"
    assert lines[1:] == ["of the host", str(64 << 20), "50000 100000"]
    # What takes seconds, as the making of a template does, is told on the same stream.
    errors = [line for line in result.stderr.decode().splitlines() if not line.startswith("kata: ")]
    assert "/ro/no" in errors[0]
    assert "Read-only" in errors[0]
    assert errors[1] != os.uname().release, "the kernel is the guest's"
    assert (volume / "new").read_text() == "of the guest\n"
    assert (volume / "new").stat().st_uid == 1000
    assert not (volume / "no").exists()


def test_an_image_runs_as_it_says(image: Path, name: str) -> None:
    result = kata("run", "--name", name, image, "--", 'echo "$(id -un) $(pwd) $COLOR $PATH"; test -w / || exit 3')
    assert result.stdout.decode() == "joe /tmp blue /bin\n"
    assert result.returncode == 3, result.stderr
    assert result.stderr == b""


@pytest.mark.parametrize(
    ("command", "code"),
    [(("/missing",), 127), (("/etc/passwd",), 126), (("sh", "-c", "sh -c 'kill -9 $$'; exit $?"), 137)],
    ids=["not found", "not executable", "killed"],
)
def test_exit_codes(rootfs: Path, name: str, command: tuple[str, ...], code: int) -> None:
    result = kata("run", "--rootfs", rootfs, "--name", name, "--", *command)
    assert result.returncode == code, result.stderr
    assert b"Traceback" not in result.stderr


@pytest.fixture
def network() -> Iterator[str]:
    """A network of CNI's, as its own configuration file."""
    if not (PLUGINS / "bridge").exists():
        pytest.skip("needs containernetworking-plugins")
    name = f"kr{os.getpid()}"
    with TemporaryDirectory() as directory, Bridge(name, Path(directory)) as bridge:
        CONFIGURATIONS.mkdir(parents=True, exist_ok=True)
        bridge.write(CONFIGURATIONS)
        written = (CONFIGURATIONS / "10-pods.conflist").rename(CONFIGURATIONS / f"{name}.conflist")
        try:
            yield name
            kept = [path.name for path in Path(directory, "cni", name).iterdir() if path.name[0].isdigit()]
            assert kept == [], "addresses that are taken"
        finally:
            written.unlink()


def test_a_network_of_cni(rootfs: Path, name: str, network: str) -> None:
    gateway = "$(ip route | sed -n 's/default via \\([^ ]*\\) .*/\\1/p')"
    script = f"ping -c 1 -W 60 {gateway} | grep -c '1 packets received'; ip -o addr show eth0 | grep -c 'inet .*/24'"
    arguments = ("run", "--network", network, "--name", name, "--rootfs", rootfs, "--", "sh", "-c", script)
    done = kata(*arguments)
    assert (done.returncode, done.stdout.split()) == (0, [b"1", b"1"]), done.stderr


def test_kill_9_gives_the_address_back(start: Start, rootfs: Path, name: str, network: str) -> None:
    process = start(
        "run", "--network", network, "--name", name, "--rootfs", rootfs, "--", "sh", "-c", "echo up; sleep 60"
    )
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    process.kill()
    process.wait(TIMEOUT_S)
    assert [list(released.problems) for released in gc.run() if released.sandbox_id == name] == [[]]


def test_no_such_network(rootfs: Path, name: str) -> None:
    done = kata("run", "--network", "nowhere", "--name", name, "--rootfs", rootfs, "true")
    assert (done.returncode, done.stderr.splitlines()[0]) == (125, b"kata: network nowhere does not exist")


def test_as_many_root_ports_as_the_configuration_says(rootfs: Path, name: str, tmp_path: Path) -> None:
    configuration = tmp_path / "configuration.toml"
    configuration.write_text(
        "[hypervisor.qemu]\ndefault_memory = 512\npcie_root_port = 6\n[factory]\nenable_template = false\n"
    )
    script = "ls /sys/bus/pci/drivers/pcieport | grep -c 0000"
    done = kata("run", "--config", configuration, "--name", name, "--rootfs", rootfs, "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, b"6\n"), done.stderr


def test_out_of_memory_is_told(rootfs: Path, name: str) -> None:
    # The VM is of the same size as that of `test_the_container_is_what_was_asked_for`, and so is its template.
    limits = ("--memory", "16M", "--cpus", "0.5")
    result = kata("run", "--rootfs", rootfs, "--name", name, *limits, "--", "tail", "-c", "200m", "/dev/zero")
    assert result.returncode == 137
    assert b"killed by the OOM killer (limit 16M)" in result.stderr


# ---------------------------------------------------------------------------------------------------------- streams


def test_twenty_megabytes_through_pipes_are_exact(rootfs: Path, name: str) -> None:
    data = random.Random(1).randbytes(20 << 20)
    result = kata(
        "run", "-i", "--rootfs", rootfs, "--name", name, "--", "sh", "-c", "cat; sha256sum /dev/null >&2", input=data
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout) == len(data)
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()


def test_files_in_and_out_slow_reader_loses_nothing(start: Start, rootfs: Path, name: str, tmp_path: Path) -> None:
    """Input is a file read from where the caller left it; output goes to a pipe that nobody reads for a while."""
    (tmp_path / "in").write_bytes(b"skipped" + b"x" * 3_000_000)
    with (tmp_path / "in").open("rb", buffering=0) as file:
        file.read(7)
        process = start("run", "-i", "--rootfs", rootfs, "--name", name, "--", "sh", "-c", "cat; echo end", stdin=file)
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1)
        time.sleep(6)
        rest, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, errors
        assert not fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
    assert first + rest == b"x" * 3_000_000 + b"end\n"


def test_a_reader_that_leaves_ends_it(start: Start, rootfs: Path, name: str) -> None:
    process = start("run", "--rootfs", rootfs, "--name", name, "--", "yes")
    assert read_line(process) == b"y\n"
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(TIMEOUT_S) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_full_disk_under_the_output_ends_it(rootfs: Path, name: str) -> None:
    with open("/dev/full", "wb") as full:
        result = kata("run", "--rootfs", rootfs, "--name", name, "--", "yes", stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 125
    assert result.stderr == b"kata: cannot write the command's output: no space left on device\n"


# --------------------------------------------------------------------------------------------- terminal and signals


def test_a_terminal_is_one_and_is_given_back(rootfs: Path, name: str) -> None:
    """Inner shell of a shell, so that the terminal can be compared before and after."""
    command = f"{KATA} run -it --rootfs {rootfs} --name {name} -- sh"
    status, said = on_a_terminal(
        ["sh", "-c", f"stty -g; {command}; echo status $?; stty -g; python3 -c '{_NONBLOCKING}'"],
        (b"/ #", b"tty; stty size; echo $TERM\n"),
        (
            b"/dev/pts/0\r\n31 101\r\nxterm\r\n",
            b"sh -c 'trap \"echo caught; exit\" INT; echo go; while :; do sleep 1; done'\n",
        ),
        (b"go\r\n", b"\x03"),
        (b"caught\r\n", b"exit 7\n"),
        size=(31, 101),
        timeout=TIMEOUT_S,
    )
    assert status == 0
    lines = said.decode().splitlines()
    assert "status 7" in lines
    settings = [line for line in lines if line.count(":") > 10]
    assert len(settings) == 2
    assert settings[0] == settings[1]
    assert lines[-1] == "blocking"


_NONBLOCKING = 'import os; print("blocking" if all(os.get_blocking(fd) for fd in (0, 1, 2)) else "left non-blocking")'


def test_a_new_window_size_reaches_the_command(start: Start, rootfs: Path, name: str) -> None:
    main, terminal = os.openpty()
    try:
        process = start(
            "run", "-it", "--rootfs", rootfs, "--name", name, "--", "sh", "-c",
            "trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.1; done",
            stdin=terminal, stdout=terminal, stderr=terminal,
        )  # fmt: skip
        said = b""
        while b"ready" not in said:
            said += os.read(main, 1000)
        termios.tcsetwinsize(main, (17, 71))
        process.send_signal(signal.SIGWINCH)
        while b"17 71" not in said:
            said += os.read(main, 1000)
        assert process.wait(TIMEOUT_S) == 5
    finally:
        os.close(main)
        os.close(terminal)


def test_signals_are_the_commands(start: Start, rootfs: Path, name: str) -> None:
    script = "trap 'echo usr1' USR1; trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    process = start("run", "--rootfs", rootfs, "--name", name, "--", "sh", "-c", script)
    assert read_line(process) == b"ready\n"
    process.send_signal(signal.SIGUSR1)
    assert read_line(process) == b"usr1\n"
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, output, errors) == (9, b"bye\n", b"")


def test_a_signal_while_it_starts_ends_it(start: Start, rootfs: Path, name: str) -> None:
    process = start("run", "--rootfs", rootfs, "--name", name, "--", "true")
    eventually(lambda: vms(name), "a VM", within_s=60)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors == b""


def test_who_insists_ends_what_ignores_signals(start: Start, rootfs: Path, name: str) -> None:
    script = "trap 'echo no' TERM; echo ready; while :; do sleep 0.1; done"
    process = start("run", "--rootfs", rootfs, "--name", name, "--", "sh", "-c", script)
    assert read_line(process) == b"ready\n"
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        assert read_line(process) == b"no\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, errors) == (137, b"")


# ------------------------------------------------------------------------------------------------------- afterwards


def test_commands_for_a_running_sandbox(start: Start, rootfs: Path, name: str, tmp_path: Path) -> None:
    """They do not mind who has started it; test_operating.py has them for containerd."""
    script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    run = start("run", "--name", name, "--rootfs", rootfs, "--env", "A=b", "--", "sh", "-c", script)
    read_line(run)
    done = kata("exec", "-i", name, "--", "sh", "-c", "echo $A; cat", input=b"said")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"b\nsaid", b"")
    assert kata("cp", f"{name}:/etc/passwd", tmp_path).returncode == 0
    assert (tmp_path / "passwd").read_bytes() == (rootfs / "etc/passwd").read_bytes()
    assert kata("pause", name).returncode == 0
    assert kata("exec", name, "--", "true").returncode == 125
    assert kata("resume", name).returncode == 0
    assert kata("stop", name).returncode == 0
    assert run.wait(TIMEOUT_S) == 9


def test_a_vm_that_dies_is_told(start: Start, rootfs: Path, name: str) -> None:
    process = start(
        "run", "--rootfs", rootfs, "--name", name, "--", "sh", "-c", "echo ready; while :; do sleep 1; done"
    )
    assert read_line(process) == b"ready\n"
    (qemu,) = (pid for pid in vms(name) if b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(qemu, signal.SIGKILL)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 125
    assert f"kata: the VM ended while the command was running: qemu of {name} was killed by signal 9".encode() in errors


@pytest.mark.skipif(not find_helper(), reason="needs a 9p server of its own (QEMU 7.2)")
def test_a_file_server_that_dies_is_told(start: Start, rootfs: Path, name: str) -> None:
    process = start("run", "--rootfs", rootfs, "--name", name, "--", "sh", "-c", "echo ready; sleep 1000")
    assert read_line(process) == b"ready\n"
    server, _ = (pid for pid in vms(name) if b"virtfs-proxy-helper" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(server, signal.SIGKILL)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 125
    ended = f"the server of the shared tree of {name} was killed by signal 9"
    assert f"kata: the VM ended while the command was running: {ended}".encode() in errors


def test_kill_9_leaves_nothing_that_gc_does_not_clear(start: Start, image: Path, name: str) -> None:
    """One boot for what concerns a sandbox that lives, and then does not: its name is taken, its owner is killed."""
    process = start("run", "--name", name, image, "--", "echo ready; sleep 1000")
    assert read_line(process) == b"ready\n"
    assert Path(STATE_ROOT, name, "users/etc/passwd").exists()

    twin = kata("run", "--name", name, image)
    assert twin.returncode == 125
    assert f"sandbox {name} already exists" in twin.stderr.decode()
    alive = kata("gc")
    assert name not in alive.stdout.decode(), "gc keeps off what is alive"
    assert vms(name)

    process.kill()
    process.communicate(timeout=10)
    eventually(lambda: not vms(name), "the VM dies with its owner")
    rows = json.loads(kata("check", "--json", "--no-network-checks").stdout)["checks"]
    leftovers = next(row for row in rows if row["name"] == "leftovers")
    assert leftovers["status"] == "warning"
    assert leftovers["hint"] == "run: kata gc"
    collected = kata("gc")
    assert collected.returncode == 0, collected.stderr
    assert f"process {STATE_ROOT}/{name}" in collected.stdout.decode()
    assert not Path(STATE_ROOT, name).exists()


def test_a_full_disk_is_told_and_nothing_stays(image: Path, name: str) -> None:
    UPPER.mkdir(mode=0o700, parents=True, exist_ok=True)
    script = f"mount -t tmpfs -o size=200k none {UPPER} && exec {KATA} run --name {name} {image}"
    result = subprocess.run(in_mount_namespace("sh", "-c", script), capture_output=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 125
    assert b"kata: " in result.stderr
    assert b"no space left" in result.stderr.lower()
    assert b"Traceback" not in result.stderr


# ------------------------------------------------------------------------------------- mistakes, told without a boot


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--memory", "1M", "--rootfs", "{rootfs}", "true"), "--memory 1M is too small; the minimum is 6M"),
        (("--rootfs", "/nonexistent", "true"), "rootfs /nonexistent is not a directory"),
        (("--rootfs", "{rootfs}"), "no command is given"),
        (("--rootfs", "{rootfs}", "-u", "nobody-here", "true"), "nobody-here"),
        (("--rootfs", "{rootfs}", "-v", "/nonexistent:/x", "true"), "/nonexistent does not exist"),
        (("/nonexistent.tar",), "/nonexistent.tar: no such file or directory"),
        ((KATA,), "tar"),
        (("--config", "/nonexistent.toml", "--rootfs", "{rootfs}", "true"), "/nonexistent.toml"),
        (("-it", "--rootfs", "{rootfs}", "sh"), "standard input is not a terminal"),
        (("--frobnicate",), "no such option"),
    ],
)
def test_mistakes_are_told_in_one_line(rootfs: Path, name: str, arguments: tuple[str, ...], said: str) -> None:
    result = kata("run", "--name", name, *(word.replace("{rootfs}", str(rootfs)) for word in arguments))
    errors = result.stderr.decode()
    assert result.returncode == 125
    assert said in errors
    assert errors.startswith("kata: ")
    assert len(errors.splitlines()) <= 2
    assert result.stdout == b""


def test_without_a_guest_image_the_hint_says_how_to_get_one(rootfs: Path, name: str) -> None:
    result = kata("run", "--rootfs", rootfs, "--name", name, "true", env={**os.environ, "KATA_IMAGES": "/nonexistent"})
    assert result.returncode == 125
    assert result.stderr.decode().splitlines()[1] == "hint: run: kata image build"


def test_without_root_it_says_so(rootfs: Path, name: str) -> None:
    setpriv = shutil.which("setpriv")
    assert setpriv
    nobody = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"]
    if subprocess.run([*nobody, "test", "-r", KATA], check=False).returncode:
        pytest.skip("this checkout is in a directory that only root can read")
    argv = [*nobody, KATA, "run", "--rootfs", str(rootfs), "true"]
    result = subprocess.run(argv, capture_output=True, timeout=TIMEOUT_S, check=False, cwd="/")
    assert result.returncode == 125
    assert b"needs root" in result.stderr
