from __future__ import annotations

from pathlib import Path

import pytest

from kata.errors import InvalidArgument, NotFound
from kata.kernel_build import fragments
from kata.kernel_build.requirements import read, requirements


def test_the_fragments_agree_and_have_what_guests_and_engines_need() -> None:
    options = fragments.options()
    guest, engines = requirements()
    assert guest.missing(options) == []
    # What Kconfig decides by itself from these is checked in the result.
    assert {one.name for one in engines.missing(options)} <= {"NF_NAT_FTP", "NF_NAT_TFTP"}


def test_all_fragments_are_used() -> None:
    here = Path(fragments.__file__).parent / "fragments"
    assert {f"{name}.conf" for name in fragments.FRAGMENTS} == {path.name for path in here.iterdir()}


def test_every_requirement_has_a_reason() -> None:
    for one in requirements():
        assert set(one.options) == set(one.reasons)
        assert all(one.reasons.values()), one.name


def test_a_list_of_requirements() -> None:
    one = read("x", "## disks\nCONFIG_A=y\n# CONFIG_B is not set\n## nets\nCONFIG_C=y\n")
    assert one.options == {"A": "y", "B": "n", "C": "y"}
    assert one.reasons == {"A": "disks", "B": "disks", "C": "nets"}
    assert [finding.reason for finding in one.missing({"A": "y", "B": "y", "C": "m"})] == ["disks", "nets"]


def test_the_users_fragments_come_last(tmp_path: Path) -> None:
    own = tmp_path / "own.conf"
    own.write_text("# CONFIG_WIREGUARD is not set\nCONFIG_KPROBES=y\n")
    options = fragments.options([own])
    assert options["WIREGUARD"] == "n"
    assert options["KPROBES"] == "y"
    assert fragments.options()["WIREGUARD"] == "y"


def test_a_whole_configuration_replaces_the_fragments(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("CONFIG_A=y\nCONFIG_B=y\n")
    (tmp_path / "own.conf").write_text("CONFIG_B=m\n")
    assert fragments.whole(tmp_path / "config", [tmp_path / "own.conf"]) == {"A": "y", "B": "m"}


@pytest.mark.parametrize("name", ["missing.conf", "."])
def test_a_fragment_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound, match="cannot read"):
        fragments.options([tmp_path / name])


def test_patches_in_the_order_of_their_names_and_the_users_last(tmp_path: Path) -> None:
    ours = fragments.patches()
    assert ours[0].name == "0001-9p-length-of-a-file-being-written.patch"
    (tmp_path / "0000-b.patch").write_text("b")
    (tmp_path / "0000-a.patch").write_text("a")
    (tmp_path / "README").write_text("no patch")
    assert [one.name for one in fragments.patches(tmp_path)] == [
        *(one.name for one in ours),
        "0000-a.patch",
        "0000-b.patch",
    ]


def test_a_directory_without_patches(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"has no \*.patch file"):
        fragments.patches(tmp_path)
    with pytest.raises(NotFound, match="is not a directory"):
        fragments.patches(tmp_path / "missing")


def test_a_patch_larger_than_a_patch_is(tmp_path: Path) -> None:
    with (tmp_path / "big.patch").open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(InvalidArgument, match="larger than 4 MiB"):
        fragments.patches(tmp_path)


def test_each_patch_says_what_it_is_for() -> None:
    for patch in fragments.patches():
        head = patch.content.partition(b"\n--- ")[0].decode()
        assert "Subject: " in head, patch.name
        assert len(head.splitlines()) > 5, patch.name
