"""The pure parts of `kata run`; the rest is tested with the real command in tests/vm/test_run.py."""

from __future__ import annotations

import os
import termios
from pathlib import Path

import pytest

from kata.cli import terminal
from kata.cli.request import RunRequest, Volume
from kata.cli.run import make_spec
from kata.errors import InvalidArgument
from kata.runtime.images.model import ImageConfig
from kata.runtime.images.user import User

ROOT = User(0, 0, (0,))
IMAGE = ImageConfig(entrypoint=("/entry",), cmd=("a", "b"), env=("PATH=/p", "X=1", "=bad"), working_dir="/w")


def test_the_image_decides_what_the_request_leaves_open() -> None:
    spec = make_spec(RunRequest(image=Path("i")), IMAGE, "box", "/r", User(5, 6, (6, 7)))
    process = spec["process"]
    assert process["args"] == ["/entry", "a", "b"]
    assert process["env"] == ["PATH=/p", "X=1"]
    assert process["cwd"] == "/w"
    assert process["user"] == {"uid": 5, "gid": 6, "additionalGids": [6, 7]}
    assert process["terminal"] is False
    assert spec["hostname"] == "box"
    assert spec["root"]["path"] == "/r"


def test_the_request_goes_before_the_image() -> None:
    request = RunRequest(image=Path("i"), command=("c",), env=(("X", "2"), ("Y", "")), workdir="/v", tty=True)
    process = make_spec(request, IMAGE, "box", "/r", ROOT)["process"]
    assert process["args"] == ["/entry", "c"]
    assert process["env"] == ["PATH=/p", "TERM=xterm", "X=2", "Y="]
    assert process["cwd"] == "/v"
    assert process["terminal"] is True


def test_a_long_name_is_a_host_name_as_far_as_it_fits() -> None:
    spec = make_spec(RunRequest(rootfs=Path("/r"), command=("ls",)), ImageConfig(), "b" * 70, "/r", ROOT)
    assert spec["hostname"] == "b" * 64


def test_a_directory_has_defaults() -> None:
    process = make_spec(RunRequest(rootfs=Path("/r"), command=("ls",)), ImageConfig(), "box", "/r", ROOT)["process"]
    assert process["cwd"] == "/"
    assert [text.partition("=")[0] for text in process["env"]] == ["PATH"]


def test_volumes_are_mounted_outer_ones_first() -> None:
    volumes = (Volume("/1", "/a/b"), Volume("/2", "/a"), Volume("/3", "/a/b/c", readonly=True))
    spec = make_spec(RunRequest(rootfs=Path("/r"), command=("ls",), volumes=volumes), ImageConfig(), "box", "/r", ROOT)
    assert [mount["destination"] for mount in spec["mounts"][-3:]] == ["/a", "/a/b", "/a/b/c"]


def test_no_command_at_all() -> None:
    with pytest.raises(InvalidArgument, match=r"image i.tar has no command"):
        make_spec(RunRequest(image=Path("i.tar")), ImageConfig(), "box", "/r", ROOT)


def test_raw_mode_is_taken_back_whatever_happens() -> None:
    main, side = os.openpty()
    before = termios.tcgetattr(side)
    modes = []
    try:
        with terminal.raw(side):
            modes.append(termios.tcgetattr(side)[3])
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert not modes[0] & (termios.ECHO | termios.ICANON | termios.ISIG)
    assert termios.tcgetattr(side) == before
    os.close(main)
    os.close(side)


def test_raw_mode_of_what_is_no_terminal_is_nothing() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with terminal.raw(fd):
        pass
    assert terminal.size(fd) is None
    os.close(fd)


def test_size_is_that_of_the_first_terminal_that_knows_it() -> None:
    main, side = os.openpty()
    null = os.open("/dev/null", os.O_RDONLY)
    assert terminal.size(null, side) is None
    termios.tcsetwinsize(main, (12, 34))
    assert terminal.size(null, side) == os.terminal_size((34, 12))
    for fd in (main, side, null):
        os.close(fd)
