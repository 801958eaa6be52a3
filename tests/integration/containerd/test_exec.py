"""One running container, shared by all tests here: exec, signals, pause, questions, events."""

from __future__ import annotations

import hashlib
import re
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from kata.protocols.processes import MAX_PID
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX
from tests.support.terminal import on_a_terminal
from tests.support.waiting import eventually

pytestmark = pytest.mark.containerd

BULK = 20 << 20


class Task:
    """A detached container and its execs."""

    def __init__(self, containerd: PrivateContainerd, *command: str) -> None:
        self.containerd = containerd
        self.id = unique_id(TEST_PREFIX)
        self.execs = 0
        containerd.ctr("run", "--detach", "--runtime", RUNTIME, BUSYBOX, self.id, *command)

    def exec_arguments(self, *command: str, flags: tuple[str, ...] = ()) -> list[str]:
        self.execs += 1
        return ["tasks", "exec", "--exec-id", f"e{self.execs}", *flags, self.id, *command]

    def exec(self, *command: str, input: bytes | None = None) -> subprocess.CompletedProcess[str]:
        return self.containerd.ctr(*self.exec_arguments(*command), input=input, check=False, timeout=120)

    def status(self) -> str:
        listing = self.containerd.ctr("tasks", "ls").stdout
        return next((line.split()[2] for line in listing.splitlines() if line.startswith(self.id)), "none")

    def delete(self) -> None:
        if self.status() != "none":
            self.containerd.ctr("tasks", "delete", "--force", self.id)
        self.containerd.ctr("containers", "delete", self.id)


@pytest.fixture(scope="module")
def task(containerd: PrivateContainerd) -> Iterator[Task]:
    task = Task(containerd, "sleep", "3600")
    yield task
    task.delete()


@pytest.mark.parametrize(
    ("command", "status"),
    [("true", 0), ("false", 1), ("exit 42", 42), ("no-such-command", 127), ("kill -9 $$", 137), ("kill -15 $$", 143)],
)
def test_exit_status(task: Task, command: str, status: int) -> None:
    assert task.exec("sh", "-c", command).returncode == status


def test_streams_are_kept_apart(task: Task) -> None:
    done = task.exec("sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_runs_in_the_container(task: Task) -> None:
    assert task.exec("sh", "-c", "cat /proc/1/cmdline").stdout == "sleep\x003600\x00"


def test_terminal(task: Task) -> None:
    status, said = on_a_terminal(
        task.containerd.ctr_command(*task.exec_arguments("sh", flags=("--tty",))),
        (b"# ", b"stty size\n"),
        (b"30 100", b"exit 7\n"),
        environment=task.containerd.environment,
        size=(30, 100),
    )
    assert status == 7, said


def test_ctrl_c_reaches_the_process(task: Task) -> None:
    status, said = on_a_terminal(
        task.containerd.ctr_command(
            *task.exec_arguments("sh", "-c", "trap 'exit 9' INT; echo ready; sleep 60 & wait", flags=("--tty",))
        ),
        (b"ready", b"\x03"),
        environment=task.containerd.environment,
    )
    assert status == 9, said


def test_bulk_both_ways(task: Task) -> None:
    data = hashlib.sha256(b"both ways").digest() * (BULK // 32)
    done = task.exec("cat", input=data)
    assert hashlib.sha256(done.stdout.encode("utf-8", "surrogateescape")).digest() == hashlib.sha256(data).digest()


def test_the_end_of_input(task: Task) -> None:
    """Pitfall: ctr often skips CloseIO, so the end of input comes only from the FIFO's last writer.

    Not with empty input: ctr may then be done with the FIFO before anybody has opened it, says nothing, and hangs with
    every runtime (runc: 21 of 30 times).
    """
    for _ in range(10):
        done = task.exec("cat", input=b"x")
        assert (done.returncode, done.stdout) == (0, "x")


def test_many_at_once(task: Task) -> None:
    done: dict[int, subprocess.CompletedProcess[str]] = {}
    commands = {n: task.exec_arguments("sh", "-c", f"echo {n}; exit {n}") for n in range(8)}

    def run(number: int) -> None:
        done[number] = task.containerd.ctr(*commands[number], check=False)

    threads = [threading.Thread(target=run, args=(number,)) for number in commands]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {n: (one.returncode, one.stdout) for n, one in done.items()} == {n: (n, f"{n}\n") for n in commands}


def test_command_that_is_not_there(task: Task) -> None:
    done = task.exec("/no/such/command")
    assert done.returncode != 0
    assert "/no/such/command" in done.stderr
    assert task.exec("true").returncode == 0, "the container is none the worse"


def test_exec_id_that_is_taken(task: Task) -> None:
    arguments = task.exec_arguments("sleep", "60", flags=("--detach",))
    task.containerd.ctr(*arguments)
    again = task.containerd.ctr(*arguments, check=False)
    assert again.returncode != 0
    assert "exists" in again.stderr
    task.containerd.ctr("tasks", "kill", "--exec-id", arguments[3], "--signal", "KILL", task.id)


def test_exec_id_that_is_free_again(task: Task) -> None:
    arguments = task.exec_arguments("sh", "-c", "echo again")
    assert [task.containerd.ctr(*arguments).stdout for _ in range(3)] == ["again\n"] * 3


def cpu_usage(task: Task) -> int:
    """Nanoseconds that the container's processes have run, as containerd tells them."""
    said = task.containerd.ctr("tasks", "metrics", task.id).stdout
    usage = re.search(r"cpuacct\.usage\s+(\d+)", said)
    assert usage is not None, said
    return int(usage[1])


def test_pause_and_resume(task: Task) -> None:
    ctr = task.containerd.ctr
    ctr(*task.exec_arguments("sh", "-c", "while true; do :; done", flags=("--detach",)))
    busy = f"e{task.execs}"
    ctr("tasks", "pause", task.id)
    try:
        assert task.status() == "PAUSED"
        refused = ctr(*task.exec_arguments("true"), check=False)
        assert refused.returncode != 0
        assert "paused" in refused.stderr
        before = cpu_usage(task)
        time.sleep(0.5)
        assert cpu_usage(task) == before
    finally:
        ctr("tasks", "resume", task.id)
    assert task.status() == "RUNNING"
    eventually(lambda: cpu_usage(task), "it runs again", lambda usage: usage > before)
    ctr("tasks", "kill", "--exec-id", busy, "--signal", "KILL", task.id)
    assert task.exec("true").returncode == 0


def test_metrics(task: Task) -> None:
    said = task.containerd.ctr("tasks", "metrics", task.id).stdout
    usage = re.search(r"memory\.usage_in_bytes\s+(\d+)", said)
    assert usage is not None, said
    assert 0 < int(usage[1]) < 512 << 20
    assert cpu_usage(task) > 0


def test_a_signal_that_the_process_handles(task: Task) -> None:
    ctr = task.containerd.ctr
    arguments = task.exec_arguments("sh", "-c", "trap 'exit 33' USR1; echo ready; while true; do sleep 0.1; done")
    with subprocess.Popen(
        task.containerd.ctr_command(*arguments), env=task.containerd.environment, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            ctr("tasks", "kill", "--exec-id", arguments[3], "--signal", "USR1", task.id)
            assert process.wait(20) == 33
        finally:
            process.kill()


def test_a_container_of_this_id_exists(task: Task) -> None:
    again = task.containerd.ctr("run", "--detach", "--runtime", RUNTIME, BUSYBOX, task.id, "true", check=False)
    assert again.returncode != 0
    assert "already exists" in again.stderr
    assert task.exec("true").returncode == 0


class Events:
    """What `ctr events` prints, read as it comes."""

    def __init__(self, containerd: PrivateContainerd) -> None:
        self._process = subprocess.Popen(
            containerd.ctr_command("events"), env=containerd.environment, stdout=subprocess.PIPE, text=True
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        # It says nothing when it has subscribed: an event that it is to see is made until it does.
        label = containerd.ctr_command("images", "label", BUSYBOX, "kata-test=x")

        def seen() -> list[str]:
            subprocess.run(label, env=containerd.environment, check=True, stdout=subprocess.DEVNULL, timeout=60)
            return self._lines

        eventually(seen, "the subscription", poll_s=0.2)

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines += self._process.stdout

    def topics_of(self, container_id: str) -> list[str]:
        return [
            topic[1]
            for line in list(self._lines)
            if container_id in line and (topic := re.search(r" /tasks/(\S+) ", line))
        ]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def events(containerd: PrivateContainerd) -> Iterator[Events]:
    events = Events(containerd)
    yield events
    events.close()


def wait_for(events: Events, container_id: str, topic: str) -> list[str]:
    return eventually(lambda: events.topics_of(container_id), f"event {topic}", lambda topics: topic in topics)


def test_events_of_an_exec_are_in_order(task: Task, events: Events) -> None:
    task.exec("true")
    assert wait_for(events, task.id, "exit") == ["exec-added", "exec-started", "exit"]


def test_events_of_a_life_are_in_order(containerd: PrivateContainerd, events: Events) -> None:
    container_id = unique_id(TEST_PREFIX)
    containerd.ctr("run", "--rm", "--runtime", RUNTIME, BUSYBOX, container_id, "true")
    assert wait_for(events, container_id, "delete") == ["create", "start", "exit", "delete"]


def test_out_of_memory_is_told(containerd: PrivateContainerd, events: Events) -> None:
    """CRI's reason OOMKilled comes from this event alone."""
    container_id = unique_id(TEST_PREFIX)
    done = containerd.ctr(
        *("run", "--rm", "--memory-limit", str(32 << 20), "--runtime", RUNTIME, BUSYBOX, container_id),
        *("sh", "-c", "head -c 100000000 /dev/zero | tail >/dev/null; exit 3"),
        check=False,
    )
    assert done.returncode in (3, 137), done.stderr
    topics = wait_for(events, container_id, "delete")
    assert "oom" in topics
    assert topics.index("start") < topics.index("oom")


def test_kill_and_the_last_status(containerd: PrivateContainerd) -> None:
    """The end of a container of its own, since the others still need theirs."""
    task = Task(containerd, "sh", "-c", "trap 'exit 5' TERM; touch /ready; while true; do sleep 0.1; done")
    try:
        assert task.exec("sh", "-c", "until test -e /ready; do sleep 0.1; done").returncode == 0
        containerd.ctr("tasks", "kill", "--signal", "TERM", task.id)
        eventually(task.status, "the task's end", lambda status: status == "STOPPED")
        refused = task.exec("true")
        assert refused.returncode != 0
        assert "stopped" in refused.stderr
        assert "non-zero exit code 5" in containerd.ctr("tasks", "delete", task.id).stderr
    finally:
        task.delete()


def test_the_processes_are_the_guests(task: Task) -> None:
    """By numbers that are nobody's on the host, where `docker top` looks for them."""
    command = task.containerd.ctr_command(*task.exec_arguments("sh", "-c", "sleep 601 >/dev/null 2>&1 & cat"))
    exec_id = f"e{task.execs}"
    with subprocess.Popen(command, env=task.containerd.environment, stdin=subprocess.PIPE) as ctr:

        def listed() -> list[list[str]]:
            return [line.split() for line in task.containerd.ctr("tasks", "ps", task.id).stdout.splitlines()[1:]]

        def is_complete(lines: list[list[str]]) -> bool:
            return len(lines) == 3 and exec_id in str(lines)

        # The init process, cat in place of the shell, and sleep. At first the exec is a process like any other.
        lines = eventually(listed, "three processes, one of them the exec", is_complete)
        assert ctr.stdin is not None
        ctr.stdin.close()
    mine = task.exec("sh", "-c", "pidof sleep").stdout.split()
    host = int(task.containerd.ctr("tasks", "ls").stdout.split(task.id)[1].split()[0])
    assert int(lines[0][0]) == host
    numbers = [int(line[0]) - MAX_PID for line in lines[1:]]
    assert str(numbers[1]) in mine
    assert [exec_id in " ".join(line) for line in lines[1:]] == [True, False]
    task.exec("sh", "-c", "kill $(pgrep -f 'sleep 601')")
