"""`kata exec`, `cp`, `stop`, `kill`, `pause` and `resume` on one live pod of two containers of containerd's."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX
from tests.support.terminal import on_a_terminal
from tests.support.waiting import eventually

pytestmark = pytest.mark.containerd

KATA = str(Path(sys.executable).with_name("kata"))
AGENT_CTL = str(Path(sys.executable).with_name("kata-agent-ctl"))
CONFIGURATION = """\
[hypervisor.qemu]
default_memory = 512
[agent.kata]
debug_console_enabled = true
"""
_TIMEOUT_S = 120.0


class Pod:
    """The pod: a container of its own, and one in which things are done."""

    def __init__(self, containerd: PrivateContainerd, *more_options: str) -> None:
        self.containerd = containerd
        self.id = unique_id(TEST_PREFIX)
        self.app = f"{self.id}-app"
        options = ("--detach", "--runtime", RUNTIME, *more_options)
        for name, kind in ((self.id, "sandbox"), (self.app, "container")):
            kinds = (f"io.kubernetes.cri.container-type={kind}", f"io.kubernetes.cri.sandbox-id={self.id}")
            annotations = [word for one in kinds for word in ("--annotation", one)]
            more = ("--env", "FROM=spec", "--cwd", "/tmp") if kind == "container" else ()
            containerd.ctr("run", *options, *annotations, *more, BUSYBOX, name, "sleep", "600")

    def exec(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return kata("exec", *arguments[:-1], self.id, "--", "sh", "-c", arguments[-1], **options)

    def said(self, *arguments: str) -> str:
        done = self.exec(*arguments)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode().strip()

    def processes(self) -> str:
        return self.said("ps")

    def tasks(self) -> dict[str, str]:
        """States of containerd's tasks."""
        lines = self.containerd.ctr("task", "list").stdout.splitlines()[1:]
        return {line.split()[0].removeprefix(f"{self.id}"): line.split()[2] for line in lines if self.id in line}

    def delete(self) -> None:
        for name in (self.app, self.id):
            self.containerd.ctr("task", "delete", "--force", name, check=False)
            self.containerd.ctr("container", "delete", name, check=False)


def kata(*arguments: str, check: bool = False, **options: Any) -> subprocess.CompletedProcess[bytes]:
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.run([KATA, *arguments], check=check, stderr=subprocess.PIPE, timeout=_TIMEOUT_S, **options)


@pytest.fixture(scope="module")
def pod(containerd: PrivateContainerd) -> Iterator[Pod]:
    pod = Pod(containerd)
    yield pod
    pod.delete()


class TestExec:
    def test_it_has_what_the_container_has(self, pod: Pod) -> None:
        assert pod.said("echo $FROM $A; pwd; id -u; hostname >/dev/null; cat; echo end") == "spec\n/tmp\n0\nend"
        assert pod.said("-e", "A=b", "-w", "/etc", "echo $FROM $A; pwd") == "spec b\n/etc"
        assert pod.said("-c", pod.id, "echo $FROM; pwd") == "\n/".strip()

    def test_users(self, pod: Pod) -> None:
        pod.said("echo 'web:x:33:34::/:/bin/sh' >> /etc/passwd; echo 'extra:x:50:web' >> /etc/group")
        assert pod.said("-u", "web", "id -u; id -g; id -G; grep CapEff /proc/self/status").split() == [
            "33", "34", "34", "50", "CapEff:", "0" * 16
        ]  # fmt: skip
        assert pod.said("-u", "7:8", "id -u; id -g") == "7\n8"
        done = pod.exec("-u", "nobody-knows", "true")
        assert (done.returncode, b"is neither in the image's /etc/passwd" in done.stderr) == (125, True)

    @pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -KILL $$", 137)])
    def test_status(self, pod: Pod, script: str, status: int) -> None:
        done = pod.exec(script)
        assert (done.returncode, done.stderr) == (status, b"")

    def test_what_cannot_be_run(self, pod: Pod) -> None:
        done = kata("exec", pod.id, "--", "/no/such/program")
        assert (done.returncode, b"executable file not found" in done.stderr) == (127, True)
        done = kata("exec", pod.id, "--", "/etc/passwd")
        assert (done.returncode, b"permission denied" in done.stderr) == (126, True)
        done = kata("exec", "-c", "none", pod.id, "--", "true")
        assert (done.returncode, done.stderr.count(b"\n")) == (125, 2)
        assert b"has no container none" in done.stderr

    def test_much_input_and_output(self, pod: Pod) -> None:
        data = os.urandom(10 << 20)
        done = pod.exec("-i", "cat; echo done >&2", input=data)
        assert (done.returncode, done.stderr) == (0, b"done\n")
        assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()

    def test_a_terminal(self, pod: Pod) -> None:
        status, said = on_a_terminal(
            [KATA, "exec", "-it", pod.id],
            (b"# ", b"stty size; echo $FROM-$TERM\n"),
            (b"spec-", b"exit 7\n"),
            size=(33, 99),
            environment={**os.environ, "TERM": "xterm"},
        )
        assert status == 7
        assert b"33 99\r\nspec-xterm\r\n" in said

    def test_a_signal_is_passed_on(self, pod: Pod) -> None:
        with subprocess.Popen(
            [
                KATA,
                "exec",
                pod.id,
                "--",
                "sh",
                "-c",
                "trap 'echo hup; exit 5' HUP; echo ready; while :; do sleep 0.1; done",
            ],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGHUP)
            assert process.stdout.read() == b"hup\n"
            assert process.wait(_TIMEOUT_S) == 5

    @pytest.mark.parametrize("options", [(), ("-t",)], ids=["pipes", "terminal"])
    def test_what_it_leaves_in_the_background_does_not_hold_it_up(self, pod: Pod, options: tuple[str, ...]) -> None:
        """Its child has its standard output, or its terminal, for longer than this test waits."""
        script = "trap '' HUP; sleep 4444 & echo started; exit 3"
        done = kata("exec", *options, pod.id, "--", "sh", "-c", script)
        assert (done.returncode, b"started" in done.stdout) == (3, True)
        assert "sleep 4444" in pod.processes()
        pod.said("for one in /proc/[0-9]*; do grep -q '[4]444' $one/cmdline && kill -9 ${one#/proc/}; done; true")

    def test_the_command_dies_with_it(self, pod: Pod) -> None:
        with subprocess.Popen([KATA, "exec", pod.id, "--", "sleep", "4321"]) as process:
            eventually(pod.processes, "it runs", lambda seen: "sleep 4321" in seen)
            process.kill()
        eventually(pod.processes, "it has been killed", lambda seen: "sleep 4321" not in seen)

    def test_a_reader_that_goes_away(self, pod: Pod) -> None:
        script = f"{KATA} exec {pod.id} -- sh -c 'yes 5432' | head -1; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        assert done.stdout.split() == ["5432", "141"]
        eventually(pod.processes, "it has been killed", lambda seen: "yes 5432" not in seen)

    def test_containerd_s_books_are_not_confused(self, pod: Pod) -> None:
        with subprocess.Popen([KATA, "exec", "-i", pod.id, "--", "cat"], stdin=subprocess.PIPE) as process:
            eventually(pod.processes, "it runs", lambda seen: " cat\n" in seen)
            listed = pod.containerd.ctr("task", "ps", pod.app).stdout
            assert len(listed.splitlines()) >= 3
            assert "kata-exec" not in listed
            pod.containerd.ctr("task", "exec", "--exec-id", "own", pod.app, "true")
            found = json.loads(kata("inspect", pod.id).stdout)
            assert [one["execs"] for one in found["containers"] if one["id"] == pod.app] == [[]]
            assert process.stdin
            process.stdin.close()
            assert process.wait(_TIMEOUT_S) == 0

    def test_the_guest_is_closed_by_default(self, pod: Pod) -> None:
        done = kata("exec", "--guest", pod.id, "--", "true")
        assert (done.returncode, done.stderr.count(b"\n")) == (125, 2)
        assert (
            b"exec in the guest: the guest's debug console is off\nhint: set debug_console_enabled = true"
            in done.stderr
        )


class TestCopy:
    def test_a_tree_there_and_back(self, pod: Pod, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        (tree / "sub").mkdir(parents=True)
        (tree / "file").write_text("hello")
        (tree / "file").chmod(0o751)
        os.chown(tree / "file", 1234, 5678)
        os.link(tree / "file", tree / "same")
        (tree / "link").symlink_to("/etc/passwd")
        with (tree / "sub/sparse").open("wb") as file:
            file.truncate(50 << 20)
        kata("cp", "-a", str(tree), f"{pod.id}:/srv", check=True)
        told = pod.said("cd /srv; stat -c '%a %u %g %h' file; readlink link; du -k sub/sparse; stat -c %s sub/sparse")
        assert told.split() == ["751", "1234", "5678", "2", "/etc/passwd", "0", "sub/sparse", str(50 << 20)]
        kata("cp", "-a", f"{pod.id}:{pod.app}:/srv/.", str(tmp_path / "back"), check=True)
        back = tmp_path / "back"
        assert (back / "file").stat().st_uid == 1234
        assert (back / "file").stat().st_ino == (back / "same").stat().st_ino
        assert (back / "file").stat().st_mtime_ns // 10**9 == (tree / "file").stat().st_mtime_ns // 10**9
        assert os.readlink(back / "link") == "/etc/passwd"
        assert ((back / "sub/sparse").stat().st_size, (back / "sub/sparse").stat().st_blocks) == (50 << 20, 0)

    def test_attributes_there_and_back(self, pod: Pod, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        try:
            os.setxattr(tmp_path / "file", "user.note", b"kept")
        except OSError:
            pytest.skip("the host's file system has no extended attributes")
        kata("cp", "-a", str(tmp_path / "file"), f"{pod.id}:/tmp/attributes", check=True)
        kata("cp", "-a", f"{pod.id}:/tmp/attributes", str(tmp_path / "back"), check=True)
        assert os.getxattr(tmp_path / "back", "user.note") == b"kept"
        kata("cp", f"{pod.id}:/tmp/attributes", str(tmp_path / "plain"), check=True)
        assert os.listxattr(tmp_path / "plain") == []

    def test_owners_are_not_kept_unless_asked_for(self, pod: Pod, tmp_path: Path) -> None:
        (tmp_path / "mine").write_text("x")
        os.chown(tmp_path / "mine", 1234, 5678)
        (tmp_path / "mine").chmod(0o4755)
        kata("cp", str(tmp_path / "mine"), f"{pod.id}:/tmp/copy", check=True)
        assert pod.said("stat -c '%u %g %a' /tmp/copy") == "0 0 755"
        pod.said("chown 1234 /tmp/copy; chmod 4755 /tmp/copy")
        kata("cp", f"{pod.id}:/tmp/copy", str(tmp_path / "back"), check=True)
        assert ((tmp_path / "back").stat().st_uid, (tmp_path / "back").stat().st_mode & 0o7777) == (0, 0o755)

    def test_links_of_a_hostile_container(self, pod: Pod, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        pod.said(f"mkdir -p /evil{tmp_path}; cd /evil; ln -s {outside} out; ln -s / root; echo x > file; mkfifo fifo")
        kata("cp", f"{pod.id}:/evil", str(tmp_path / "into"), check=True)
        assert os.readlink(tmp_path / "into/out") == str(outside)
        assert os.listdir(outside) == []
        kata("cp", f"{pod.id}:/evil/root/evil/file", str(tmp_path / "got"), check=True)
        assert (tmp_path / "got").read_text() == "x\n"
        # Into the container by one of its links: never to the guest's own files.
        kata("cp", str(tmp_path / "got"), f"{pod.id}:/evil/root/tmp/here", check=True)
        assert pod.said("cat /tmp/here") == "x"

    def test_archives(self, pod: Pod, tmp_path: Path) -> None:
        done = kata("cp", f"{pod.id}:/etc/passwd", "-", check=True)
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            assert archive.getnames() == ["passwd"]
        done = kata("cp", f"{pod.id}:/etc/.", "-", check=True)
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            assert "passwd" in archive.getnames()
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            info = tarfile.TarInfo("given/file")
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
        kata("cp", "-", f"{pod.id}:/tmp", input=out.getvalue(), check=True)
        assert pod.said("cat /tmp/given/file") == "abc"
        with open("/dev/full", "wb") as full:
            done = kata("cp", f"{pod.id}:/etc", "-", stdout=full)
        assert (done.returncode, done.stderr) == (1, b"kata: the archive: no space left on device\n")
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("../escaped"))
        done = kata("cp", "-", f"{pod.id}:/tmp", input=out.getvalue())
        assert (done.returncode, b"leads out of the directory" in done.stderr) == (1, True)

    @pytest.mark.parametrize(
        ("source", "target", "said"),
        [
            ("{pod}:/none", "{here}/x", "there is no /none"),
            ("{here}/file", "{pod}:/none/x", "no such file"),
            ("{pod}:none:/etc", "{here}/x", "has no container none"),
        ],
    )
    def test_mistakes(self, pod: Pod, tmp_path: Path, source: str, target: str, said: str) -> None:
        (tmp_path / "file").touch()
        done = kata("cp", source.format(pod=pod.id, here=tmp_path), target.format(pod=pod.id, here=tmp_path))
        assert done.returncode == 1
        assert said in done.stderr.decode()
        assert done.stderr.count(b"\n") <= 2


@pytest.mark.long
def test_the_guest_itself(containerd: PrivateContainerd, tmp_path: Path) -> None:
    """It needs a template of its own."""
    configuration = tmp_path / "configuration.toml"
    configuration.write_text(CONFIGURATION)
    pod = Pod(containerd, "--runtime-config-path", str(configuration))
    try:
        done = kata("exec", "--guest", "-w", "/etc", pod.id, "--", "sh", "-c", "cat /proc/1/cmdline; pwd; exit 4")
        assert b"kata-agent" in done.stdout
        assert done.stdout.endswith(b"/etc\n")
        assert done.returncode == 4
        status, said = on_a_terminal([KATA, "exec", "--guest", pod.id], (b"# ", b"stty size; exit 5\n"), size=(44, 111))
        assert (status, b"44 111" in said) == (5, True)
    finally:
        pod.delete()


def test_the_agent_can_be_called(pod: Pod) -> None:
    socket = pod.containerd.state(pod.id) / "shim-monitor.sock"
    url = subprocess.run(
        ["curl", "--silent", "--unix-socket", str(socket), "http://sandbox/agent-url"],
        check=True, capture_output=True, text=True, timeout=_TIMEOUT_S,
    ).stdout  # fmt: skip
    command = [AGENT_CTL, "connect", "--server-address", url, "-c", "Check", "-c", "GetGuestDetails"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert "SERVING" in done.stdout
    done = subprocess.run(
        [AGENT_CTL, "connect", "--sandbox", pod.id, "-c", "Version"], check=True, capture_output=True, text=True
    )
    assert "agent_version" in done.stdout
    stats = subprocess.run(
        ["curl", "--silent", "--unix-socket", str(socket), "http://sandbox/stats"],
        check=True, capture_output=True, text=True, timeout=_TIMEOUT_S,
    ).stdout  # fmt: skip
    found = json.loads(stats)
    assert set(found["containers"]) == {pod.id, pod.app}
    assert found["containers"][pod.app]["pids"] >= 1
    assert found["vm"]["memory_bytes"] > 10 << 20


def test_paused_and_resumed_as_containerd_sees_it(pod: Pod, tmp_path: Path) -> None:
    events = subprocess.Popen(pod.containerd.ctr_command("events"), stdout=subprocess.PIPE, text=True)
    try:
        kata("pause", pod.id, pod.app, check=True)
        assert pod.tasks() == {"": "RUNNING", "-app": "PAUSED"}
        done = kata("exec", "-c", pod.app, pod.id, "--", "true")
        assert (done.returncode, b"is paused" in done.stderr) == (125, True)
        assert kata("pause", pod.id, pod.app).returncode == 1
        kata("cp", f"{pod.id}:/etc/passwd", str(tmp_path), check=True)
        assert (tmp_path / "passwd").read_text().startswith("root:")
        pod.containerd.ctr("task", "resume", pod.app)
        kata("pause", pod.id, check=True)
        assert pod.tasks() == {"": "PAUSED", "-app": "PAUSED"}
        kata("resume", pod.id, check=True)
        assert pod.tasks() == {"": "RUNNING", "-app": "RUNNING"}
        assert events.stdout
        seen: list[str] = []
        while sum("/tasks/" in line for line in seen) < 6:
            seen.append(events.stdout.readline())
        assert [line.split("/tasks/")[1].split()[0] for line in seen if "/tasks/" in line] == [
            "paused", "resumed", "paused", "paused", "resumed", "resumed"
        ]  # fmt: skip
    finally:
        events.kill()
        events.communicate()


def test_killed_and_stopped_as_containerd_sees_it(pod: Pod, tmp_path: Path) -> None:
    """The last one: the pod does not survive it."""
    with subprocess.Popen([KATA, "exec", pod.id, "--", "sleep", "600"], stderr=subprocess.PIPE) as left:
        eventually(pod.processes, "it runs", lambda seen: seen.count("sleep 600") == 2)
        assert kata("kill", "-s", "USR1", pod.id, "none").returncode == 1
        kata("kill", "-s", "KILL", pod.id, pod.app, check=True)
        eventually(pod.tasks, "the container ends", lambda seen: seen == {"": "RUNNING", "-app": "STOPPED"})
        assert left.wait(_TIMEOUT_S) == 137
    kata("cp", f"{pod.id}:{pod.app}:/etc/passwd", str(tmp_path), check=True)
    assert (tmp_path / "passwd").read_text().startswith("root:")
    with subprocess.Popen([KATA, "exec", "-c", pod.id, pod.id, "--", "sleep", "600"], stderr=subprocess.PIPE) as left:
        eventually(
            lambda: kata("exec", "-c", pod.id, pod.id, "--", "ps").stdout,
            "it runs",
            lambda seen: seen.count(b"sleep 600") == 2,
        )
        kata("stop", "--force", pod.id, check=True)
        assert left.wait(_TIMEOUT_S) in (125, 137)
    assert pod.tasks() == {"": "STOPPED", "-app": "STOPPED"}
    found = json.loads(kata("inspect", pod.id).stdout)
    assert (found["state"], found["vm"]["pid"]) == ("stopped", 0)
    done = kata("exec", "-c", pod.id, pod.id, "--", "true")
    assert (done.returncode, done.stderr.count(b"Traceback")) == (125, 0)
    for name in (pod.app, pod.id):
        assert pod.containerd.ctr("task", "delete", name, check=False).returncode in (0, 137, 1)
        pod.containerd.ctr("container", "delete", name)
    assert pod.tasks() == {}
    assert kata("stop", pod.id).stderr.startswith(b"kata: sandbox")
