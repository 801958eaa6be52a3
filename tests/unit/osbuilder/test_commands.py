from __future__ import annotations

import time
from pathlib import Path

import pytest

from kata.errors import DeadlineExceeded, Internal, NotFound
from kata.osbuilder import commands


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
