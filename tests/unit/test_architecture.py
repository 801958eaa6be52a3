"""The table of architectures, and how people name one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import kata
from kata.architecture import ALL, AMD64, ARM64, HOST, named, of_machine_type, of_platform
from kata.errors import InvalidArgument


@pytest.mark.parametrize("platform", ["linux/arm64", "arm64", "linux/arm64/v8", "aarch64", "linux/aarch64"])
def test_a_platform_by_its_names(platform: str) -> None:
    assert of_platform(platform) is ARM64


@pytest.mark.parametrize(
    "platform", ["", "linux", "linux/", "windows/amd64", "linux/arm64/v9", "linux/arm/v7", "x" * 99]
)
def test_an_unknown_platform_is_told_with_those_that_are_known(platform: str) -> None:
    with pytest.raises(InvalidArgument, match=r"unknown platform '.{0,32}' \(linux/amd64, linux/arm64\)"):
        of_platform(platform)


def test_an_unknown_architecture_is_told_with_those_that_are_known() -> None:
    assert (named("amd64"), named("aarch64")) == (AMD64, ARM64)
    with pytest.raises(InvalidArgument, match=r"unknown architecture 'mips' \(amd64, arm64\)"):
        named("mips")


def test_the_host_is_one_of_them() -> None:
    assert named(os.uname().machine) is HOST
    assert (HOST.current, HOST.build_command) == ("current", "kata image build")
    assert (ARM64.current, ARM64.build_command) == ("current-arm64", "kata image build --arch arm64")


def test_each_is_found_by_what_is_its_own() -> None:
    assert [of_machine_type(one.machine_type) for one in ALL] == list(ALL)
    for attribute in ("name", "machine", "elf", "libraries", "loader", "current", "qemu"):
        assert len({getattr(one, attribute) for one in ALL}) == len(ALL)


def test_nothing_else_names_another_architecture() -> None:
    """But for examples in documentation, and numbers of system calls."""
    root = Path(kata.__file__).parent
    naming = re.compile(r"""["'](arm64|aarch64|virt)["']""")
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if naming.search(path.read_text())}
    assert found == {"architecture.py", "linux/sklookup.py"}
