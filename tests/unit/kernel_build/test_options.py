from __future__ import annotations

import pytest

from kata.errors import InvalidArgument
from kata.kernel_build.options import MAX_TEXT, OFF, compare, join, parse, render

TEXT = """\
# Automatically generated file; DO NOT EDIT.

CONFIG_PVH=y
CONFIG_NR_CPUS=256
CONFIG_LSM="landlock,yama"
# CONFIG_MODULES is not set
CONFIG_EMPTY=""
"""


def test_options_are_read_and_written() -> None:
    options = parse(TEXT, "x")
    assert options == {"PVH": "y", "NR_CPUS": "256", "LSM": '"landlock,yama"', "MODULES": OFF, "EMPTY": '""'}
    assert parse(render(options), "x") == options


@pytest.mark.parametrize("line", ["PVH=y", "CONFIG_PVH", "CONFIG_=y", "CONFIG_PVH=", "CONFIG_PVH = y", "y", "\0"])
def test_a_line_that_is_no_option_is_named(line: str) -> None:
    with pytest.raises(InvalidArgument, match=r"own\.conf:2: invalid line") as caught:
        parse(f"# a comment\n{line}\n", "own.conf")
    assert caught.value.hint


def test_an_option_twice() -> None:
    assert parse("CONFIG_A=y\nCONFIG_A=y\n", "x") == {"A": "y"}
    with pytest.raises(InvalidArgument, match="x:2: CONFIG_A is set twice"):
        parse("CONFIG_A=y\n# CONFIG_A is not set\n", "x")


def test_a_text_without_end_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="larger than 4 MiB"):
        parse("#" * (MAX_TEXT + 1), "x")


def test_fragments_must_agree_but_the_users_wins() -> None:
    ours = {"a.conf": {"A": "y", "B": "y"}, "b.conf": {"B": "y", "C": "n"}}
    assert join(ours) == {"A": "y", "B": "y", "C": "n"}
    with pytest.raises(InvalidArgument, match=r"own wants CONFIG_C to be y, b\.conf wants n"):
        join({**ours, "own": {"C": "y"}})
    assert join({**ours, "own": {"C": "y"}}, replace=["own"])["C"] == "y"


def test_what_differs_is_told_with_its_reason() -> None:
    wanted, reasons = {"A": "y", "B": "n", "C": "y"}, {"A": "roots", "B": "safety", "C": "disks"}
    found = {"A": "y", "B": "m"}
    assert [str(one) for one in compare(wanted, found, reasons)] == [
        "CONFIG_B is m instead of n (safety)",
        "CONFIG_C is n instead of y (disks)",
    ]
    assert compare({"A": "y"}, {"A": "m"}, reasons, modules=True) == []
    assert compare({"B": "n"}, {"B": "m"}, reasons, modules=True)
    assert compare({"A": "y"}, {}, reasons, modules=True)
