from __future__ import annotations

import os
from pathlib import Path

import pytest

from kata.cli import request
from kata.cli.request import RunRequest, Volume
from kata.errors import InvalidArgument


@pytest.mark.parametrize(
    ("words", "rootfs", "expected"),
    [
        (["a.tar"], None, (Path("a.tar"), ())),
        (["a.tar", "--", "ls", "-l"], None, (Path("a.tar"), ("ls", "-l"))),
        (["a.tar", "ls", "--", "x"], None, (Path("a.tar"), ("ls", "--", "x"))),
        (["ls", "-l"], Path("/r"), (None, ("ls", "-l"))),
    ],
)
def test_words_are_image_and_command(words: list[str], rootfs: Path | None, expected: object) -> None:
    assert request.split_words(words, rootfs) == expected


@pytest.mark.parametrize(
    ("words", "rootfs"), [([], None), ([""], None), ([], Path("/r")), (["ls", "a\0b"], Path("/r"))]
)
def test_nothing_to_run_is_refused(words: list[str], rootfs: Path | None) -> None:
    with pytest.raises(InvalidArgument):
        request.split_words(words, rootfs)


def test_env_takes_values_passes_on_and_lets_the_last_win() -> None:
    environ = {"HOME": "/me", "X": "1"}
    assert request.parse_env(["A=1", "B=", "A=2=3", "X", "MISSING"], environ) == (("A", "2=3"), ("B", ""), ("X", "1"))


@pytest.mark.parametrize("text", ["", "=x", "A=\0", " A=1", "A\udcff=1"])
def test_bad_env(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--env"):
        request.parse_env([text], {})


def test_bad_env_that_is_passed_on() -> None:
    with pytest.raises(InvalidArgument, match=r"--env X: 'a.udcff' is not valid text"):
        request.parse_env(["X"], {"X": "a\udcff"})


def test_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert request.parse_volumes(["/a:/b", "./c:/d/:ro", "..:/e:rw"]) == (
        Volume("/a", "/b"),
        Volume(f"{tmp_path}/c", "/d", readonly=True),
        Volume(os.path.dirname(tmp_path), "/e"),
    )
    assert request.parse_volumes(["/a:/b:ro"])[0].mount() == {
        "destination": "/b",
        "type": "bind",
        "source": "/a",
        "options": ["rbind", "rro"],
    }


@pytest.mark.parametrize(
    "text",
    ["", "/a", "/a:", ":/b", "/a:b", "/a:/b:xx", "/a:/b:ro:z", "name:/b", "/a:/b/../c", "/a:/", "/a:/.", "/a\0:/b"],
)
def test_bad_volume(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--volume"):
        request.parse_volumes([text])


def test_two_volumes_on_one_place() -> None:
    with pytest.raises(InvalidArgument, match="two volumes have the destination /b"):
        request.parse_volumes(["/a:/b", "/c:/b/"])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256M", 256 << 20),
        ("2g", 2 << 30),
        ("8192k", 8 << 20),
        ("6291456", 6 << 20),
        ("1GiB", 1 << 30),
        (" 7m ", 7 << 20),
    ],
)
def test_memory(text: str, size: int) -> None:
    assert request.parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5G", "1x", "5M", "0", "17T", "9" * 40, "٣M", "1e9", "12MM"])
def test_bad_memory(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--memory"):
        request.parse_memory(text)


@pytest.mark.parametrize(("text", "quota"), [("2", 200_000), ("0.5", 50_000), ("0.333333", 33_334)])
def test_cpus(text: str, quota: int) -> None:
    assert RunRequest(cpus=request.parse_cpus(text)).resources() == {"cpu": {"quota": quota, "period": 100_000}}


@pytest.mark.parametrize("text", ["", "0", "0.001", "-1", "nan", "inf", "1e3", "241", "9" * 50, "1,5"])
def test_bad_cpus(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--cpus"):
        request.parse_cpus(text)


def test_no_limits_are_no_resources() -> None:
    assert RunRequest().resources() == {}
    assert RunRequest(memory=1 << 30).resources() == {"memory": {"limit": 1 << 30}}


@pytest.mark.parametrize("text", ["", "..", "-a", "a/b", "a" * 77, "ä"])
def test_bad_name(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--name"):
        request.parse_name(text)


@pytest.mark.parametrize("text", ["", "a", "./a", "/a\0"])
def test_bad_workdir(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--workdir"):
        request.parse_workdir(text)
