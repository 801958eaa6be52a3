"""Users of images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kata.errors import InvalidArgument, NotFound
from kata.runtime.images.user import User, resolve_user

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# daemon:x:1:1
daemon:x:1:1:daemon:/:/bin/false
broken
bad:x:abc:1::/:
huge:x:99999999999:1::/:
negative:x:-5:1::/:
1000:x:42:43:a name made of digits:/:
web:x:1000:1001::/:
"""
GROUP = """\
root:x:0:root
wheel:x:10:root,web
web:x:1001:
www:x:1002:web,daemon
www2:x:1002:web
short:x
"""


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    return root


@pytest.mark.parametrize(
    ("spec", "user"),
    [
        ("", User(0, 0, (0, 10))),
        ("root", User(0, 0, (0, 10))),
        ("0", User(0, 0, (0, 10))),
        ("daemon", User(1, 1, (1, 1002))),
        ("web", User(1000, 1001, (1001, 10, 1002))),
        ("web:0", User(1000, 0, (0,))),
        ("web:www", User(1000, 1002, (1002,))),
        ("web:5000", User(1000, 5000, (5000,))),
        ("5000", User(5000, 0, (0,))),
        ("5000:6000", User(5000, 6000, (6000,))),
        ("5000:wheel", User(5000, 10, (10,))),
        ("1000", User(42, 43, (43,))),  # a name wins over a number if the file has it first
        (":wheel", User(0, 10, (10,))),
        ("2147483647", User(2147483647, 0, (0,))),
    ],
)
def test_lookup(rootfs: Path, spec: str, user: User) -> None:
    assert resolve_user(rootfs, spec) == user


@pytest.mark.parametrize(
    "spec",
    ["nobody", "web:nogroup", "web:", ":", "a:b:c", "-1", "+1", "2147483648", "0x10", "٣", "bad", "huge", "#", "x\ny"],
)
def test_nobody(rootfs: Path, spec: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        resolve_user(rootfs, spec)
    assert caught.value.message.startswith("user ")
    assert "\n" not in caught.value.message


def test_without_files_numbers_work_and_names_do_not(tmp_path: Path) -> None:
    assert resolve_user(tmp_path, "7:8") == User(7, 8, (8,))
    assert resolve_user(tmp_path, "") == User(0, 0, (0,))
    with pytest.raises(InvalidArgument):
        resolve_user(tmp_path, "root")


def test_no_rootfs(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        resolve_user(tmp_path / "absent", "")


@pytest.mark.parametrize("link", ["../../outside", "/outside", "{}"])
def test_links_stay_in_the_image(rootfs: Path, tmp_path: Path, link: str) -> None:
    (tmp_path / "outside").write_text("evil:x:0:0::/:\n")
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to(link.format(tmp_path / "outside"))
    with pytest.raises(InvalidArgument):
        resolve_user(rootfs, "evil")
    (rootfs / "outside").write_text("good:x:5:6::/:\n")
    if link != "{}":
        assert resolve_user(rootfs, "good").uid == 5


@pytest.mark.parametrize("kind", ["fifo", "directory", "noise"])
def test_files_that_are_none(rootfs: Path, kind: str) -> None:
    path = rootfs / "etc/passwd"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.write_bytes(os.urandom(100_000))
    assert resolve_user(rootfs, "7:8").uid == 7
