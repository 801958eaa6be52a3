"""`ctr run`: whole lives, one virtual machine each."""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess

import pytest

from kata.runtime.launch.timings import read
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX
from tests.support.terminal import on_a_terminal
from tests.support.waiting import eventually

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

#: Bytes of a stream in the tests of completeness: many times every buffer on the way.
BULK = 20 << 20


def arguments(*command: str, flags: tuple[str, ...] = ()) -> list[str]:
    return ["run", "--rm", "--runtime", RUNTIME, *flags, BUSYBOX, unique_id(TEST_PREFIX), *command]


def run(containerd: PrivateContainerd, *command: str) -> subprocess.CompletedProcess[str]:
    return containerd.ctr(*arguments(*command), check=False)


def test_runs_on_the_guests_kernel(containerd: PrivateContainerd) -> None:
    done = run(containerd, "sh", "-c", "uname -r; echo problem >&2")
    assert (done.returncode, done.stderr) == (0, "problem\n")
    assert re.fullmatch(r"\d+\.\d+\.\S+\n", done.stdout)
    assert done.stdout.strip() != platform.release()


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("exit 1", 1),
        ("exit 42", 42),
        ("no-such-command", 127),
        ("kill -9 $$", 137),
    ],
)
def test_exit_status(containerd: PrivateContainerd, command: str, status: int) -> None:
    # A signal cannot end process 1 of its own namespace: a child does the dying.
    done = run(containerd, "sh", "-c", f"sh -c '{command}'; exit $?")
    assert done.returncode == status, done.stderr


def test_the_phases_of_a_start_can_be_asked_for(containerd: PrivateContainerd) -> None:
    sandbox = unique_id(TEST_PREFIX)
    containerd.ctr("run", "-d", "--runtime", RUNTIME, BUSYBOX, sandbox, "sh", "-c", "echo out; sleep 1000")
    try:
        names = eventually(
            lambda: [phase.name for phase in read(containerd.state(sandbox)).phases],
            "the last phase",
            lambda names: "first output" in names,
        )
    finally:
        containerd.ctr("task", "rm", "-f", sandbox)
        containerd.ctr("container", "rm", sandbox)
    expected = ["front end", "plan", "first answer", "sandbox", "rootfs", "create", "start"]
    assert [name for name in names if name in expected] == expected
    assert "qemu" in names, "at its own time: it may have had a head start"


def test_terminal(containerd: PrivateContainerd) -> None:
    status, said = on_a_terminal(
        containerd.ctr_command(*arguments("sh", flags=("-t",))),
        (b"# ", b"tty; stty size\n"),
        (b"30 100", b"exit 7\n"),
        environment=containerd.environment,
        size=(30, 100),
    )
    assert status == 7, said
    # ctr leaves the host's terminal adding a carriage return to the one that the guest's has added.
    assert b"/dev/pts/0\n30 100" in said.replace(b"\r", b"")


def test_bulk_input_arrives_whole(containerd: PrivateContainerd) -> None:
    data = hashlib.sha256(b"input").digest() * (BULK // 32)
    done = containerd.ctr(*arguments("sha256sum"), input=data, timeout=120)
    assert done.stdout.split()[0] == hashlib.sha256(data).hexdigest()


def test_bulk_output_arrives_whole(containerd: PrivateContainerd) -> None:
    """Also the pitfall of a FIFO opened for reading and writing: the writer's last bytes may not get lost."""
    script = f"yes 0123456789abcde | head -c {BULK}; yes 0123456789abcde | head -c {BULK // 4} >&2; exit 3"
    done = containerd.ctr(*arguments("sh", "-c", script), timeout=120, check=False)
    assert done.returncode == 3
    assert done.stdout == "0123456789abcde\n" * (BULK // 16)
    assert done.stderr == "0123456789abcde\n" * (BULK // 64)


@pytest.mark.parametrize("scheme", ["file", "binary"])
def test_output_to_a_log(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory, scheme: str) -> None:
    directory = tmp_path_factory.mktemp("log")
    log, logger = directory / "log", directory / "logger"
    logger.write_text('#!/bin/sh\nexec 5>&-\ncat <&3 >>"$2"\ncat <&4 >>"$2"\n')
    logger.chmod(0o755)
    uri = f"file://{log}" if scheme == "file" else f"binary://{logger}?to={log}"
    container_id = unique_id(TEST_PREFIX)
    containerd.ctr(
        *("run", "--detach", "--log-uri", uri, "--runtime", RUNTIME, BUSYBOX, container_id),
        *("sh", "-c", "echo to the log; echo problem >&2"),
    )
    try:
        eventually(lambda: containerd.ctr("tasks", "ls").stdout, "the task's end", lambda tasks: "STOPPED" in tasks)
        assert sorted(log.read_text().splitlines()) == ["problem", "to the log"], "all of it, once the exit is told"
    finally:
        containerd.ctr("tasks", "delete", "--force", container_id)
        containerd.ctr("containers", "delete", container_id)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("/no/such/command", "not found"),
        ("/etc/passwd", "permission denied"),
    ],
)
def test_what_cannot_be_run(containerd: PrivateContainerd, command: str, said: str) -> None:
    done = run(containerd, command)
    assert done.returncode != 0
    assert said in done.stderr.lower()
    assert command in done.stderr or said == "permission denied"  # crun does not name it


def test_the_hosts_network_is_refused(containerd: PrivateContainerd) -> None:
    done = containerd.ctr(*arguments("true", flags=("--net-host",)), check=False)
    assert done.returncode == 1
    assert "asks for the host network, which a VM cannot have" in done.stderr


def test_volumes_and_environment(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> None:
    volume = tmp_path_factory.mktemp("volume")
    (volume / "file").write_text("from the host")
    script = "cat /ro/file; echo; touch /ro/x 2>&1; echo from the guest >/rw/new; echo $GREETING; pwd"
    flags = (
        *("--mount", f"type=bind,src={volume},dst=/ro,options=rbind:ro"),
        *("--mount", f"type=bind,src={volume},dst=/rw,options=rbind:rw"),
        *("--env", "GREETING=hello world", "--cwd", "/tmp"),
    )
    done = containerd.ctr(*arguments("sh", "-c", script, flags=flags))
    lines = done.stdout.splitlines()
    assert lines[0] == "from the host"
    assert "Read-only file system" in lines[1]
    assert lines[2:] == ["hello world", "/tmp"]
    assert (volume / "new").read_text() == "from the guest\n"
    assert not (volume / "x").exists()
