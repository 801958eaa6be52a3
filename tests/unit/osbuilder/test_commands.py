from __future__ import annotations

import time
from collections.abc import Sequence
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


def test_a_program_of_a_root_is_emulated_for_that_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Sequence[str], float]] = []
    root, emulator = tmp_path / "root", tmp_path / "emulator"
    root.mkdir()
    emulator.write_text("emulator")

    def run(argv: Sequence[str], *, timeout: float) -> str:
        ran.append((argv, timeout))
        if len(argv) > 4:
            assert (root / argv[2].lstrip("/")).read_text() == "emulator"
        if argv[-1] == "wrong":
            raise Internal("wrong")
        return "said"

    monkeypatch.setattr(commands, "run", run)
    assert commands.run_in(root, "/bin/tool", "word", timeout=3) == "said"
    assert commands.run_in(root, "/bin/tool", "word", timeout=3, emulator=emulator) == "said"
    assert [list(argv) for argv, _ in ran] == [
        ["chroot", str(root), "/bin/tool", "word"],
        ["chroot", str(root), "/.emulator", "/bin/tool", "word"],
    ]
    assert ran[1][1] > ran[0][1]
    with pytest.raises(Internal):
        commands.run_in(root, "/bin/tool", "wrong", timeout=3, emulator=emulator)
    assert list(root.iterdir()) == []
