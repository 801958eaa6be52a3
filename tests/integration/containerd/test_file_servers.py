"""The servers of the shared tree: nothing that a container does with files ends them, and their end is a clear one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kata.runtime.hypervisor.qemu.share import find_helper
from kata.runtime.ledger.processes import processes_of
from kata.runtime.sandbox.container import KILL_TIMEOUT_S
from tests.support.containerd import PrivateContainerd, unique_id
from tests.support.fileways import RUNC, Files, missed
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX
from tests.support.waiting import eventually

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this"), pytest.mark.timeout(240)]

#: Linux's 9p looks a name up and then creates it: another one may have done so meanwhile.
EXPECTED = {"virtio-9p": {"ENOENT for a name that another creates"}, "virtio-fs": set[str]()}
#: What differs from a host's file system; see docs/limitations.md.
NOT_SO: dict[str, dict[str, str]] = {
    RUNC: {},
    "virtio-9p": {
        "a file that is unlinked and open: size, mode, owner, times, attributes": "No such file or directory",
        "a file that is unlinked and open: opened again through /proc": "No such file or directory",
        "a file that was replaced, by its descriptor": "is not so",
        "fallocate: without size, zeroed, punched; holes found": "Operation not supported",
        "renameat2: without replacing": "Invalid argument",
        "renameat2: exchanging": "Invalid argument",
        "a file without a name (O_TMPFILE), then with one": "Operation not supported",
        "inotify: changes in a directory that nobody else holds open": "is not so",
        "access control list: whom it names, and nobody else": "Operation not supported",
        "access control list: inherited": "Operation not supported",
        "300 directories in each other": "File name too long",
    },
    "virtio-fs": {
        "a file without a name (O_TMPFILE), then with one": "Operation not supported",
    },
    # tmpfs zeroes no range.
    "layers, memory": {
        "fallocate: without size, zeroed, punched; holes found": "Operation not supported",
    },
}
OVER_BOTH = pytest.mark.parametrize("way", ["virtio-9p", "virtio-fs"])
ROUNDS = pytest.mark.parametrize(
    "rounds", [30, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(1200)])]
)
PLACES = pytest.mark.parametrize("directory", ["/srv/files", "/a/files"], ids=["root", "volume"])


@OVER_BOTH
@ROUNDS
@PLACES
def test_no_file_ends_a_server(files: Files, way: str, directory: str, rounds: int) -> None:
    container_id = unique_id(TEST_PREFIX)
    command = files.command("filestress", (directory, str(rounds)), container_id=container_id)
    done = subprocess.run(command, capture_output=True, text=True, timeout=180 + rounds)
    assert set(json.loads(done.stdout)) <= EXPECTED[way], done.stderr
    warned = f"container {container_id}: may write to /a, /b over 9p" in files.containerd.log_text()
    assert warned == (way == "virtio-9p")


@pytest.mark.long
@pytest.mark.parametrize("way", ["layers, disk", "layers, memory"])
def test_what_programs_have_met_on_layers(files: Files, way: str) -> None:
    assert missed(files.found("fileissues")) == NOT_SO.get(way, {})


@PLACES
@pytest.mark.parametrize("way", [RUNC, "virtio-9p", "virtio-fs"])
def test_what_programs_have_met(files: Files, way: str, directory: str) -> None:
    not_so = missed(files.found("fileissues", directory))
    expected = dict(NOT_SO[way])
    if (way, directory) == ("virtio-9p", "/srv/files"):
        del expected["inotify: changes in a directory that nobody else holds open"]
    if way == "virtio-9p" and not find_helper():
        # QEMU itself goes from directory to directory.
        del expected["300 directories in each other"]
    assert not_so == expected, json.dumps(not_so, indent=1)


@pytest.mark.parametrize("way", ["virtio-fs", pytest.param("virtio-9p", marks=pytest.mark.long)])
def test_no_link_leads_out(files: Files, way: str, tmp_path: Path) -> None:
    """A container that looks for a file of the host's by links, and by a directory that becomes one, finds none."""
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    found = files.run("filehostile", ("escape", "/a/files", str(secret)))
    assert found["tried"] > 100
    assert found["read"] == []


@OVER_BOTH
@pytest.mark.long
@pytest.mark.parametrize("count", [2_000, 20_000])
@pytest.mark.timeout(900)
def test_a_container_that_opens_very_many_files(files: Files, way: str, count: int) -> None:
    """The server takes as much memory and as many descriptors as it may, and the sandbox goes on."""
    container_id = unique_id(TEST_PREFIX)
    command = files.command(
        "filehostile", ("hoard", "/a/files", str(count)), "--cap-add", "CAP_SYS_RESOURCE", container_id=container_id
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdin
            assert running.stdout
            held = json.loads(running.stdout.readline())
            server = server_of(files.containerd.state(container_id), way)
            memory = memory_of(server)
            print(way, held, f"{memory >> 20} MiB, {descriptors_of(server)} descriptors")  # noqa: T201
            assert held["held"] == count or held["error"] in ("EMFILE", "ENFILE", "ENOMEM")
            assert memory < (100 << 20) + 1024 * held["held"]
            said, _ = running.communicate("go on\n", timeout=600)
            assert json.loads(said) == {"after": True}
            assert running.returncode == 0
        finally:
            running.kill()


@pytest.mark.parametrize(("way", "count"), [("virtio-9p", 50_048), ("virtio-fs", 1_000_000)])
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_guest_that_opens_files_past_its_kernel(files: Files, way: str, count: int) -> None:
    """Root in a guest asks past its kernel, which has limits of its own: a server opens what it may have open, refuses
    the rest, and takes little memory for each; and the sandbox can be ended.
    """
    container_id = unique_id(TEST_PREFIX)
    arguments = ("9p" if way == "virtio-9p" else "fs", str(count))
    command = files.command("filehoard", arguments, "--privileged", container_id=container_id)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdin
            assert running.stdout
            assert running.stdout.readline() == "ready\n"
            state = files.containerd.state(container_id)
            before = sum(map(memory_of, processes_of(str(state))))
            running.stdin.write("begin\n")
            running.stdin.flush()
            said = json.loads(running.stdout.readline())
            memory = sum(map(memory_of, processes_of(str(state)))) - before
            print(way, said, f"{memory >> 20} MiB more, {descriptors_of(server_of(state, way))} descriptors")  # noqa: T201
            assert said["held"] + sum(said["errors"].values()) == count
            assert {errno.errorcode[int(number)] for number in said["errors"]} <= {"EMFILE", "ENFILE", "ENOMEM"}
            assert memory < (100 << 20) + 1024 * said["held"]
            files.containerd.ctr("task", "kill", "--signal", "KILL", container_id)
            assert running.wait(KILL_TIMEOUT_S + 30) == 137
        finally:
            running.kill()
            files.containerd.ctr("tasks", "delete", "--force", container_id, check=False)
            files.containerd.ctr("containers", "delete", container_id, check=False)
    eventually(lambda: list(processes_of(str(state))), "the sandbox's processes have ended", lambda seen: not seen)


@OVER_BOTH
@pytest.mark.long
@pytest.mark.parametrize("rounds", [300, 10_000])
@pytest.mark.timeout(900)
def test_rubbish_for_the_servers(files: Files, way: str, rounds: int, tmp_path: Path) -> None:
    """Root in a guest feeds the devices by itself: a server stays small, and the sandbox ends, or can be ended.

    Over virtio-fs QEMU may leave virtiofsd, which then ends. Over 9p the guest cannot end the container any more: its
    kernel waits for a server to close the container's files. Answers that go anywhere may bring the guest down, too.
    """
    container_id, output = unique_id(TEST_PREFIX), tmp_path / "output"
    arguments = ("9p" if way == "virtio-9p" else "fs", str(rounds), str(secrets.randbits(32)))
    command = files.command("virtqueue", arguments, "--privileged", container_id=container_id)
    with output.open("w") as said, subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT) as running:
        try:
            state = files.containerd.state(container_id)
            server = eventually(lambda: server_of(state, way), "the server runs", bool)
            largest = 0

            def look() -> bool:
                nonlocal largest
                with contextlib.suppress(OSError):  # it may end at any moment
                    largest = max(largest, memory_of(server))
                return running.poll() is not None or output.read_text().endswith("\n")

            eventually(look, "the program has said what it did", within_s=60 + rounds / 10, poll_s=0.2)
            files.containerd.ctr("task", "kill", "--signal", "KILL", container_id, check=False)
            running.wait(KILL_TIMEOUT_S + 30)
        finally:
            running.kill()
            files.containerd.ctr("tasks", "delete", "--force", container_id, check=False)
            files.containerd.ctr("containers", "delete", container_id, check=False)
    print(way, arguments, output.read_text(), f"{largest >> 20} MiB")  # noqa: T201
    assert largest < 200 << 20
    if output.read_text():
        assert json.loads(output.read_text())["rounds"] >= rounds
    assert running.returncode == 137
    eventually(lambda: list(processes_of(str(state))), "the sandbox's processes have ended", lambda seen: not seen)


def memory_of(pid: int) -> int:
    """Bytes of memory that a process has to itself and shares."""
    status = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("Pss_Anon:"))


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@OVER_BOTH
def test_the_end_of_the_server_is_the_end_of_the_sandbox(containerd: PrivateContainerd, files: Files, way: str) -> None:
    """It is killed while a container writes: everything ends at once, and the log says why."""
    if way == "virtio-9p" and not find_helper():
        pytest.skip("needs a 9p server of its own (QEMU 7.2)")
    container_id = unique_id(TEST_PREFIX)
    busy = "while :; do dd if=/dev/zero of=/file bs=64k count=16 2>/dev/null; echo written; done"
    running = subprocess.Popen(
        containerd.ctr_command("run", "--rm", *files.options(), BUSYBOX, container_id, "sh", "-c", busy),
        env=containerd.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == b"written\n"
        state = containerd.state(container_id)
        os.kill(server_of(state, way), signal.SIGKILL)
        killed = time.monotonic()
        running.communicate(timeout=60)
        assert time.monotonic() - killed < 20
        assert running.returncode == 137
        said = f"the server of the shared tree of {container_id} was killed by signal 9, so its VM is ended"
        eventually(lambda: said in containerd.log_text(), "the reason is in the log")
        eventually(lambda: list(processes_of(str(state))), "the sandbox's processes have ended", lambda seen: not seen)
    finally:
        running.kill()
        running.communicate()
        containerd.ctr("tasks", "delete", "--force", container_id, check=False)
        containerd.ctr("containers", "delete", container_id, check=False)


def server_of(state: Path, way: str) -> int:
    """The process that serves a sandbox's shared tree; 0 as long as there is none."""
    own = way == "virtio-fs" or find_helper()
    for pid in processes_of(str(state)):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if own and (b"virtiofsd" in command or command[0].endswith(b"/virtfs-proxy-helper")):
                return pid
            if not own and b"qemu-system" in command[0]:
                return pid
    return 0
