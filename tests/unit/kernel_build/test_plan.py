from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kata.errors import InvalidArgument
from kata.kernel_build.fragments import Patch
from kata.kernel_build.plan import Inputs, environment, make, missing_packages

INPUTS = Inputs(
    source="ab" * 32,
    package="6.12.118-1",
    date=1_700_000_000,
    patches=(Patch("a.patch", b"a"),),
    options={"PVH": "y"},
    config_version=3,
    compiler="gcc 12",
)


def test_names() -> None:
    assert INPUTS.upstream == "6.12.118"
    assert INPUTS.release == "6.12.118-kata3"
    assert INPUTS.version == f"6.12.118-kata3-{INPUTS.key[:12]}"
    assert INPUTS.wanted == {"PVH": "y", "LOCALVERSION": '"-kata3"', "LOCALVERSION_AUTO": "n"}


@pytest.mark.parametrize(
    ("other", "another_tree"),
    [
        (replace(INPUTS, source="cd" * 32), True),
        (replace(INPUTS, patches=()), True),
        (replace(INPUTS, patches=(Patch("a.patch", b"b"),)), True),
        (replace(INPUTS, patches=(Patch("b.patch", b"a"),)), True),
        (replace(INPUTS, options={"PVH": "n"}), False),
        (replace(INPUTS, config_version=4), False),
        (replace(INPUTS, compiler="gcc 14"), False),
    ],
)
def test_each_input_makes_another_kernel(other: Inputs, another_tree: bool) -> None:
    assert other.version != INPUTS.version
    assert (other.tree_key != INPUTS.tree_key) == another_tree


def test_a_version_without_one_of_linux() -> None:
    with pytest.raises(InvalidArgument, match="version next of"):
        assert replace(INPUTS, package="next").upstream


def test_the_command_builds_outside_of_the_tree() -> None:
    command = make(Path("/tree"), Path("/objects"), "vmlinux", jobs=2)
    assert command == ["make", "-C", "/tree", "O=/objects", "-j2", "ARCH=x86_64", "LOCALVERSION=", "vmlinux"]
    assert "CC=ccache gcc" in make(Path("/tree"), Path("/objects"), "vmlinux", ccache=True)


def test_who_builds_and_when_does_not_show() -> None:
    env = environment(INPUTS.date, Path("/wanted"), Path("/ccache"))
    assert env["KBUILD_BUILD_TIMESTAMP"] == "2023-11-14 22:13:20 UTC"
    assert env["KBUILD_BUILD_USER"] == env["KBUILD_BUILD_HOST"] == "kata"
    assert env["KCONFIG_ALLCONFIG"] == "/wanted"


def test_packages_of_what_is_missing() -> None:
    assert missing_packages(["strip", "ar", "flex"], ["/usr/include/gelf.h"]) == ["binutils", "flex", "libelf-dev"]
    assert missing_packages([], []) == []
