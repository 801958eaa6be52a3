from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from kata.errors import DeadlineExceeded, Internal, NotFound
from kata.osbuilder import commands


def test_output_comes_back() -> None:
    assert commands.run(["sh", "-c", "echo $PYTHONHASHSEED; pwd"], timeout=10, cwd=Path("/")) == "0\n/\n"


def test_a_failure_is_told_with_its_last_words() -> None:
    with pytest.raises(Internal, match=r"sh -c failed with status 3: two \| three \| four"):
        commands.run(["sh", "-c", "for i in one two three four; do echo $i >&2; done; exit 3"], timeout=10)


def test_a_killed_child_is_told_as_such() -> None:
    with pytest.raises(Internal, match="signal 9"):
        commands.run(["sh", "-c", "kill -9 $$"], timeout=10)


def test_a_child_ends_with_its_deadline(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"sh did not end within 0\.5 s|within 0 s|within 1 s"):
        commands.run(["sh", "-c", f"echo $$ >{tmp_path}/pid; exec sleep 60"], timeout=0.5)
    assert time.monotonic() - started < 50
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_full_disk_is_recognised() -> None:
    with pytest.raises(OSError, match="No space") as caught:
        commands.run(["sh", "-c", "echo 'tar: x: Cannot write: No space left on device' >&2; exit 2"], timeout=10)
    assert caught.value.errno == errno.ENOSPC


def test_a_missing_tool_comes_with_its_package() -> None:
    commands.require(["sh"])
    with pytest.raises(NotFound, match="no-such-tool") as caught:
        commands.require(["sh", "no-such-tool"])
    assert caught.value.hint == "run: apt-get install no-such-tool"


def test_bytes_go_through_a_pipe(tmp_path: Path) -> None:
    commands.pipe(["head", "-c", "300000", "/dev/zero"], ["tee", str(tmp_path / "out")], timeout=10)
    assert (tmp_path / "out").stat().st_size == 300000


@pytest.mark.parametrize(
    ("producer", "consumer", "words"),
    [
        ("exit 3", "cat", "status 3"),
        ("cat /dev/zero", "echo no thanks >&2; exit 4", "status 4: no thanks"),
    ],
)
def test_both_ends_of_a_pipe_are_watched(producer: str, consumer: str, words: str) -> None:
    with pytest.raises(Internal, match=words):
        commands.pipe(["sh", "-c", producer], ["sh", "-c", consumer], timeout=10)


@pytest.mark.parametrize(
    ("producer", "consumer"), [("sleep 60", "cat"), ("exec >&-; sleep 60", "cat"), ("exit 0", "sleep 60")]
)
def test_a_pipe_ends_with_its_deadline(producer: str, consumer: str) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        commands.pipe(["sh", "-c", producer], ["sh", "-c", consumer], timeout=0.5)
    assert time.monotonic() - started < 50


def test_digests_are_those_of_the_programs() -> None:
    digests = commands.digests("sh", "tar")
    assert set(digests) == {"sh", "tar"}
    assert all(len(digest) == 64 for digest in digests.values())
