"""The ledger: whatever happened to its owner, all that it lists is given back, and nothing else."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from kata.errors import AlreadyExists, FailedPrecondition
from kata.runtime.ledger.files import remove_tree
from kata.runtime.ledger.journal import Ledger, Locked, claim
from kata.runtime.ledger.kinds import FILE, PROCESS, RELEASERS, TREE
from kata.runtime.ledger.processes import MARKER, processes_of
from tests.support.mounts import in_mount_namespace
from tests.support.waiting import eventually

#: Holds a file and much memory.
HOLDER = """
import fcntl, mmap, sys, time
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
memory = mmap.mmap(-1, 512 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
print("up", flush=True)
time.sleep(60)
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def marked(state: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that belongs to the sandbox, and ignores every signal it can."""
    with subprocess.Popen(
        ["sh", "-c", "trap '' TERM INT HUP; echo up; while true; do sleep 0.1; done"],
        env={"PATH": os.defpath, MARKER: str(state)},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
        process.kill()


def reopened(ledger: Ledger) -> Ledger:
    """The ledger as the next process finds it."""
    ledger.close()
    return Ledger(ledger.directory)


class TestContent:
    def test_what_is_held_survives_its_owner(self, state: Path) -> None:
        ledger = Ledger(str(state))
        ledger.hold(FILE, "/a")
        ledger.hold(PROCESS, "/b")
        ledger.hold(FILE, "/c")
        ledger.drop(FILE, "/a")
        again = reopened(ledger)
        assert again.held == ((PROCESS, "/b"), (FILE, "/c"))
        again.close()

    def test_a_descriptor_of_it_is_the_same_ledger(self, state: Path, tmp_path: Path) -> None:
        first = Ledger(str(state))
        first.hold(FILE, str(tmp_path / "socket"))
        second = Ledger.adopt(str(state), os.dup(first.fileno()))
        first.close()
        assert second.held == ((FILE, str(tmp_path / "socket")),)
        with pytest.raises(Locked):
            Ledger(str(state))
        assert second.release() == []
        assert not state.exists()

    def test_dropping_what_is_not_held_changes_nothing(self, state: Path) -> None:
        ledger = Ledger(str(state))
        ledger.drop(FILE, "/a")
        assert reopened(ledger).held == ()

    @pytest.mark.parametrize("tail", [b"+\tfile\t/cut", b"+\tfi", b"+"])
    def test_a_line_that_a_crash_cut_off_counts_for_nothing(self, state: Path, tail: bytes) -> None:
        ledger = Ledger(str(state))
        ledger.hold(FILE, "/whole")
        with open(state / "ledger", "ab") as file:
            file.write(tail)
        again = reopened(ledger)
        assert again.held == ((FILE, "/whole"),)
        again.close()

    @pytest.mark.parametrize(
        "line", [b"", b"+\tfile", b"+\trocket\t/x", b"*\tfile\t/x", b"\xff\xfe\t\t", b"+\tfile\t/x\t/y"]
    )
    def test_lines_that_mean_nothing_are_passed_over(self, state: Path, line: bytes) -> None:
        ledger = Ledger(str(state))
        with open(state / "ledger", "ab") as file:
            file.write(line + b"\n")
        ledger.hold(FILE, "/x")
        again = reopened(ledger)
        assert again.held == ((FILE, "/x"),)
        again.close()

    @pytest.mark.parametrize("value", ["/a\nfile", "/a\tb", "/a\0"])
    def test_a_value_cannot_forge_a_line(self, state: Path, value: str) -> None:
        ledger = Ledger(str(state))
        with pytest.raises(ValueError, match="control character"):
            ledger.hold(FILE, value)
        ledger.close()

    def test_only_the_owner_may_look(self, state: Path) -> None:
        Ledger(str(state / "box")).close()
        assert state.stat().st_mode & 0o777 == 0o700
        state /= "box"
        assert state.stat().st_mode & 0o777 == 0o700
        assert (state / "ledger").stat().st_mode & 0o777 == 0o600


class TestRelease:
    def test_gives_back_files_trees_and_the_directory(self, state: Path, tmp_path: Path) -> None:
        file, tree = tmp_path / "socket", tmp_path / "tree"
        file.touch()
        (tree / "a/b").mkdir(parents=True)
        (state / "inner").mkdir(parents=True)
        ledger = Ledger(str(state))
        ledger.hold(FILE, str(file))
        ledger.hold(TREE, str(tree))
        assert ledger.release() == []
        assert list(tmp_path.iterdir()) == []

    def test_what_was_never_acquired_costs_nothing(self, state: Path, tmp_path: Path) -> None:
        ledger = Ledger(str(state))
        for kind in (FILE, TREE, PROCESS):
            ledger.hold(kind, str(tmp_path / "absent"))
        assert ledger.release() == []

    def test_kills_every_marked_process(self, state: Path, marked: subprocess.Popen[bytes]) -> None:
        with subprocess.Popen(["sleep", "60"], env={MARKER: f"{state}-other"}) as stranger:
            ledger = Ledger(str(state))
            ledger.hold(PROCESS, str(state))
            assert marked.pid in processes_of(str(state))
            assert ledger.release() == []
            assert marked.wait(5) == -9
            assert stranger.poll() is None, "a sandbox of a similar name is left alone"
            stranger.kill()

    def test_what_is_exiting_already_has_its_files_closed(self, state: Path, tmp_path: Path) -> None:
        """A VMM that died with its shim: the kernel frees its memory first, and closes its disks after that."""
        disk = tmp_path / "disk"
        disk.touch()
        with subprocess.Popen([sys.executable, "-c", HOLDER, disk], env={MARKER: str(state)}, stdout=-1) as vmm:
            assert vmm.stdout is not None
            assert vmm.stdout.readline() == b"up\n"
            ledger = Ledger(str(state))
            ledger.hold(PROCESS, str(state))
            vmm.kill()
            eventually(lambda: list(processes_of(str(state))), "the mark is gone", lambda seen: not seen, poll_s=0)
            assert ledger.release() == []
            with disk.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_a_process_in_execve_is_found_as_well(self, state: Path, tmp_path: Path) -> None:
        script = tmp_path / "forever"
        script.write_text('#!/bin/sh\nexec "$0"\n')
        script.chmod(0o755)
        with subprocess.Popen([script], env={MARKER: str(state)}) as marked:
            try:
                for _ in range(300):
                    assert list(processes_of(str(state))) == [marked.pid]
            finally:
                marked.kill()

    def test_does_not_kill_itself(self, state: Path) -> None:
        script = (
            "import sys; from kata.runtime.ledger.journal import Ledger\n"
            "ledger = Ledger(sys.argv[1]); ledger.hold('process', sys.argv[1]); print(ledger.release())"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(state)],
            env={MARKER: str(state)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr

    def test_one_problem_does_not_stop_the_rest(self, state: Path, tmp_path: Path) -> None:
        file, directory = tmp_path / "file", tmp_path / "directory"
        file.touch()
        directory.mkdir()
        ledger = Ledger(str(state))
        ledger.hold(FILE, str(file))
        ledger.hold(FILE, str(directory))
        (problem,) = ledger.release()
        assert problem.startswith(f"file {directory}: ")
        assert not file.exists()
        # It stays on the ledger, and the next try succeeds.
        directory.rmdir()
        again = Ledger(str(state))
        assert (FILE, str(directory)) in again.held
        assert again.release() == []
        assert not state.exists()

    def test_twice_is_once(self, state: Path) -> None:
        ledger = Ledger(str(state))
        ledger.release()
        successor = claim(str(state))
        assert ledger.release() == [], "what is there now is another's"
        assert state.exists()
        successor.release()

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    def test_a_disk_that_is_full(self, state: Path, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.touch()
        ledger = Ledger(str(state))
        ledger.hold(FILE, str(file))
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, ledger.fileno())
        os.close(full)
        with pytest.raises(OSError, match="No space left"):
            ledger.hold(FILE, "/b")
        assert ledger.release() == []
        assert not file.exists()
        assert not state.exists()

    def test_a_disk_that_is_full_in_the_middle_of_a_line(self, state: Path) -> None:
        ledger = Ledger(str(state))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
        try:
            with pytest.raises(OSError, match="No space left"):
                ledger.hold(FILE, "/a")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        ledger.hold(FILE, "/b")
        ledger.close()
        found = Ledger(str(state))
        assert found.held == ((FILE, "/b"),)
        found.release()


@pytest.mark.parametrize("kind", RELEASERS)
def test_every_kind_has_a_releaser(kind: str) -> None:
    module, _, name = RELEASERS[kind].partition(":")
    assert list(signature(getattr(import_module(module), name)).parameters) in (
        [parameter] for parameter in ("directory", "path", "entry", "record")
    )


class TestLock:
    def test_a_second_owner_is_refused(self, state: Path) -> None:
        ledger = Ledger(str(state))
        with pytest.raises(Locked):
            Ledger(str(state))
        with pytest.raises(AlreadyExists, match="sandbox state already exists"):
            claim(str(state))
        ledger.close()
        Ledger(str(state)).close()

    def test_waits_as_long_as_it_is_told(self, state: Path) -> None:
        ledger = Ledger(str(state))
        begin = time.monotonic()
        with pytest.raises(Locked):
            Ledger(str(state), wait_s=0.1)
        assert 0.1 <= time.monotonic() - begin < 60
        ledger.close()

    def test_goes_with_the_process(self, state: Path) -> None:
        script = "import os, sys; from kata.runtime.ledger.journal import Ledger\n"
        script += "Ledger(sys.argv[1]); os.kill(os.getpid(), 9)"
        subprocess.run([sys.executable, "-c", script, str(state)], check=False, timeout=20)
        claim(str(state)).release()

    def test_a_forked_child_takes_it_over(self, state: Path) -> None:
        ledger = claim(str(state))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
        ledger.close()
        with pytest.raises(AlreadyExists):
            claim(str(state))
        os.close(writing)
        os.waitpid(child, 0)
        claim(str(state)).release()


class TestClaim:
    def test_of_a_dead_sandbox_gives_back_first(
        self, state: Path, tmp_path: Path, marked: subprocess.Popen[bytes]
    ) -> None:
        file = tmp_path / "socket"
        file.touch()
        dead = Ledger(str(state))
        dead.hold(FILE, str(file))
        dead.hold(PROCESS, str(state))
        (state / "console.log").touch()
        dead.close()
        ledger = claim(str(state))
        assert not file.exists()
        assert marked.wait(5) == -9
        assert os.listdir(state) == ["ledger"]
        assert ledger.held == ()
        ledger.release()

    def test_of_one_that_cannot_be_cleared(self, state: Path, tmp_path: Path) -> None:
        dead = Ledger(str(state))
        dead.hold(FILE, str(tmp_path))
        dead.close()
        with pytest.raises(FailedPrecondition, match=r"leftovers of an earlier sandbox in .*/state: file "):
            claim(str(state))


class TestRemoveTree:
    def test_follows_no_link(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").touch()
        tree = tmp_path / "tree"
        tree.mkdir()
        (tree / "directory").symlink_to(outside)
        (tree / "file").symlink_to(outside / "file")
        remove_tree(str(tree))
        assert not tree.exists()
        assert (outside / "file").exists()

    def test_deeper_than_a_path_can_name(self, tmp_path: Path) -> None:
        top = tmp_path / "tree"
        top.mkdir()
        here = os.open(top, os.O_RDONLY)
        for _ in range(50):
            os.mkdir("d" * 200, dir_fd=here)
            deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = deeper
        os.close(here)
        remove_tree(str(top))
        assert not top.exists()

    @pytest.mark.root
    def test_refuses_what_is_mounted(self, tmp_path: Path) -> None:
        """In a mount namespace of its own, so that a failure leaves no mount behind."""
        inner = tmp_path / "tree/inner"
        inner.mkdir(parents=True)
        script = (
            "import subprocess, sys; from kata.runtime.ledger.files import remove_tree\n"
            "subprocess.run(['mount', '-t', 'tmpfs', 'precious', sys.argv[2]], check=True)\n"
            "open(sys.argv[2] + '/file', 'w').close()\n"
            "try:\n"
            "    remove_tree(sys.argv[1])\n"
            "except OSError as error:\n"
            "    print(error)\n"
            "open(sys.argv[2] + '/file').close()\n"
        )
        done = subprocess.run(
            in_mount_namespace(sys.executable, "-c", script, str(inner.parent), str(inner)),
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.returncode == 0, done.stderr
        assert "is still mounted" in done.stdout


def test_a_ledger_whose_release_is_loaded_needs_no_module_afterwards(tmp_path: Path) -> None:
    """A package may be removed while its sandboxes run."""
    program = f"""
import sys
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import CGROUP, FILE
open({str(tmp_path / "file")!r}, "w").close()
ledger = Ledger({str(tmp_path / "state")!r})
ledger.hold(FILE, {str(tmp_path / "file")!r})
ledger.hold(CGROUP, {str(tmp_path / "no-cgroup")!r})
ledger.load_release()
before = set(sys.modules)
assert ledger.release() == []
print(sorted(name for name in set(sys.modules) - before if name.startswith("kata")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert not (tmp_path / "file").exists()
