"""What a failed test leaves: logs of what it ran, also of sandboxes that have ended, bounded, in a named folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import evidence
from tests.support.evidence import Evidence, bounded, link, numbered, prune

ROOT = Path(__file__).parents[3]
#: One test passes, one fails; the log is one that the process follows.
TESTS = """
from pathlib import Path
from tests.support import evidence

LOG = Path(__file__).with_name("containerd.log")

def test_that_passes():
    evidence.follow(LOG)
    LOG.write_text("of the first\\n")

def test_that_fails(tmp_path):
    (tmp_path / "console.log").write_text("of the guest\\n")
    LOG.open("a").write("of the second\\n")
    print("said")
    assert "this" == "that"
"""


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "kept"
    path.mkdir()
    return path


def state(tmp_path: Path, name: str, **logs: str) -> Path:
    """A sandbox's state directory."""
    directory = tmp_path / "states" / name
    directory.mkdir(parents=True, exist_ok=True)
    for log, text in logs.items():
        (directory / f"{log}.log").write_text(text)
    return directory


def files(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_a_run_names_what_its_failure_has_left(tmp_path: Path) -> None:
    path = tmp_path / "test_it.py"
    path.write_text(TESTS)
    options = ("-p", "tests.support.failures", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "KATA_TEST_FAILURES_ROOT": str(tmp_path / "failures")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (directory,) = (tmp_path / "failures").glob("*/*")
    assert f"logs of failed tests are in {directory.parent}" in done.stdout
    left = files(directory)
    assert left.keys() == {"report.txt", "containerd.log", "scratch/console.log"}
    assert left["containerd.log"] == "of the second\n"
    assert "said" in left["report.txt"]
    assert "this" in left["report.txt"]


class TestSandboxes:
    def test_logs_outlive_their_sandbox(self, tmp_path: Path, kept: Path) -> None:
        seen: dict[str, int] = {}
        evidences = Evidence(tmp_path / "run", kept, re.compile("t1-"))
        evidences.begin()
        directory = state(tmp_path, "web", console="booted\n", shim="served\n")
        link(directory.parent, kept, seen)
        # The ring begins anew, as `kata.runtime.hypervisor.console.RingFile` does it.
        (directory / "console.log").rename(directory / "console.log.1")
        (directory / "console.log").write_text("panicked\n")
        link(directory.parent, kept, seen)
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
        state(tmp_path, "t1-another", console="not ours\n")
        link(directory.parent, kept, seen)
        saved = evidences.save("integration/test_x.py::test_y[a b]", "what pytest says")
        assert saved == tmp_path / "run/integration-test_x.py-test_y[a-b]"
        assert files(saved) == {
            "report.txt": "what pytest says",
            "sandboxes/web/console.log": "booted\npanicked\n",
            "sandboxes/web/shim.log": "served\n",
        }

    def test_what_ended_before_the_test_is_not_about_it(self, tmp_path: Path, kept: Path) -> None:
        directory = state(tmp_path, "old", console="of another test\n")
        os.utime(directory / "console.log", (time.time() - 60,) * 2)
        link(directory.parent, kept, {})
        (directory / "console.log").unlink()
        evidences = Evidence(tmp_path / "run", kept, re.compile("t1-"))
        evidences.begin()
        assert evidences.save("t", "report") is None

    def test_nothing_else_is_linked(self, tmp_path: Path, kept: Path) -> None:
        directory = state(tmp_path, "web")
        (directory / "spec.json").write_text("{}")
        (directory / "x.log").symlink_to("/etc/passwd")
        (directory.parent / "start-slot-0").write_text("")
        link(directory.parent, kept, {})
        assert not files(kept)

    def test_they_go_some_minutes_after_the_end_and_when_there_are_too_many(
        self, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = time.time()
        for name, age in (("runs", 1000.0), ("old", 1000.0), ("older", 20.0), ("newer", 10.0)):
            directory = state(tmp_path, name, console="x" * 10)
            os.utime(directory / "console.log", (now - age,) * 2)
        link(tmp_path / "states", kept, {})
        for name in ("old", "older", "newer"):
            (tmp_path / "states" / name / "console.log").unlink()
        prune(kept, now)
        assert {path.name for path in kept.iterdir()} == {"runs", "older", "newer"}
        monkeypatch.setattr(evidence, "_MAX_KEPT", 15)
        prune(kept, now)
        assert {path.name for path in kept.iterdir()} == {"runs", "newer"}


def test_a_log_that_is_removed_is_taken_before(tmp_path: Path) -> None:
    evidences = Evidence(tmp_path / "run", None, re.compile("t1-"))
    log = tmp_path / "containerd.log"
    log.write_bytes(b"x" * (evidence.MAX_FILE + 5) + b"end")
    evidences.follow(log)
    evidences.end(log)
    log.unlink()
    saved = evidences.save("t", "report")
    assert saved is not None
    content = (saved / "containerd.log").read_bytes()
    assert content.endswith(b"xend")
    assert len(content) == evidence.MAX_FILE
    evidences.begin()
    assert evidences.save("another", "report") is None, "it was the test's before"


def test_names_and_bounds() -> None:
    pieces = [("containerd.log", b"1"), ("containerd.log", b"2"), ("sandboxes/a/console.log", b"3")]
    assert [name for name, _ in numbered(pieces)] == ["containerd.log", "containerd-2.log", "sandboxes/a/console.log"]
    large = b"x" * (evidence.MAX_TEST // 2)
    assert list(bounded({"a": large, "b": large, "c": b"x"})) == ["a", "b"]


def test_a_host_on_which_everything_fails(tmp_path: Path) -> None:
    evidences = Evidence(tmp_path / "run", None, re.compile("t1-"))
    log = tmp_path / "containerd.log"
    evidences.follow(log)
    log.write_text("x")
    saved = [evidences.save(f"test-{number}", "report") for number in range(evidence.MAX_TESTS + 3)]
    assert saved[-3:] == [None] * 3
    assert len(list((tmp_path / "run").iterdir())) == evidence.MAX_TESTS


def test_old_runs_go(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"2026013{number}T000000-1").mkdir()
    new = evidence.new_run(tmp_path)
    assert new.parent == tmp_path
    assert not new.exists()
    assert [path.name[:8] for path in sorted(tmp_path.iterdir())] == ["20260133", "20260134", "20260135"]
