"""`kata image` as a person meets it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kata.architecture import ARM64
from kata.cli.image import app
from kata.cli.osbuilder import app as osbuilder
from kata.cli.program import Invocation
from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound
from kata.osbuilder import build, contents, store
from kata.osbuilder.commands import Progress
from kata.osbuilder.contents import Item

A, B, C = (f"0.1.0-{letter * 12}" for letter in "abc")


@pytest.fixture
def root(tmp_path: Path, make_image: Callable[..., Path]) -> Path:
    for age, version in enumerate((A, B, C)):
        make_image(tmp_path, version, age)
    store.switch_current(tmp_path, B)
    return tmp_path


def run(root: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--root", str(root)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_shows_all_and_marks_the_current(root: Path) -> None:
    lines = run(root, "list").splitlines()
    assert [line.split()[0] for line in lines] == ["VERSION", A, B, C]
    assert [line.split()[-1] == "yes" for line in lines[1:]] == [False, True, False]
    assert "6.12.118+deb13-amd64" in lines[1]
    assert "2026-11-16" in lines[1]


def test_list_cuts_no_version_off(tmp_path: Path, make_image: Callable[..., Path]) -> None:
    make_image(tmp_path, "0.1.0-a-rather-long-name-of-a-recipe-aaaaaaaaaaaa", 0)
    line = run(tmp_path, "list").splitlines()[1]
    assert line.split() == [
        *("0.1.0-a-rather-long-name-of-a-recipe-aaaaaaaaaaaa", "default", "amd64", "erofs", "6.12.118+deb13-amd64"),
        *("2026-11-16", "0", "MB"),
    ]


def test_list_of_nothing_is_a_heading(tmp_path: Path) -> None:
    assert run(tmp_path / "nowhere", "list").split()[0] == "VERSION"


def test_the_environment_names_the_root(root: Path) -> None:
    result = CliRunner().invoke(app, ["check"], env={"KATA_IMAGES": str(root)})
    assert result.output == f"image {B} is complete and unchanged\n"


def test_check_takes_a_version(root: Path) -> None:
    assert A in run(root, "check", A)
    (root / A / "initrd").write_bytes(b"x" * (root / A / "initrd").stat().st_size)
    with pytest.raises(FailedPrecondition, match="initrd"):
        run(root, "check", A)


@pytest.mark.parametrize(("version", "error"), [("nonesuch", NotFound), ("../etc", InvalidArgument)])
def test_check_of_what_is_not_there(root: Path, version: str, error: type[KataError]) -> None:
    with pytest.raises(error):
        run(root, "check", version)


def test_prune_prints_what_it_removed(root: Path) -> None:
    assert run(root, "prune", "--keep", "1") == f"{C}\n"
    assert run(root, "prune", "--keep", "1") == ""


def test_a_negative_number_is_refused(root: Path) -> None:
    result = CliRunner().invoke(app, ["prune", "--root", str(root), "--keep", "-1"])
    assert result.exit_code == 2


def test_build_passes_its_options_on_and_prints_the_directory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[build.BuildOptions] = []

    def fake(options: build.BuildOptions, progress: Progress) -> store.GuestImage:
        asked.append(options)
        progress("choosing packages")
        return store.find(root)

    monkeypatch.setattr(build, "build", fake)
    result = CliRunner().invoke(app, ["build", "--root", str(root), "--cache", "/c", "--force", "--update"])
    assert asked == [build.BuildOptions(images=root, cache=Path("/c"), force=True, update=True)]
    assert result.stdout == f"{root / B}\n"
    assert "choosing packages" in result.stderr


def test_an_architecture_is_chosen_by_both_programs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[build.BuildOptions] = []

    def fake(options: build.BuildOptions, _: Progress) -> store.GuestImage:
        asked.append(options)
        return store.find(root)

    monkeypatch.setattr(build, "build", fake)
    monkeypatch.setattr(build, "build_root", lambda options, *_: asked.append(options))
    run(root, "build", "--arch", "arm64")
    arguments = ["rootfs", "--arch", "arm64", "-r", str(tmp_path / "rootfs")]
    assert CliRunner().invoke(osbuilder, arguments, obj=Invocation(), catch_exceptions=False).exit_code == 0
    assert [options.architecture for options in asked] == [ARM64, ARM64]
    with pytest.raises(InvalidArgument, match=r"unknown architecture 'mips' \(amd64, arm64\)"):
        run(root, "build", "--arch", "mips")
    with pytest.raises(InvalidArgument, match="kernels are built for amd64 only"):
        run(root, "build", "--arch", "arm64", "--kernel", "tailored")
    assert len(asked) == 2


def test_no_command_is_help() -> None:
    result = CliRunner().invoke(app, [])
    for command in ("build", "list", "check", "prune"):
        assert command in result.output


def test_switch_makes_another_image_the_current_one(root: Path) -> None:
    assert run(root, "switch", A) == f"{root / A}\n"
    assert store.find(root).version == A
    with pytest.raises(NotFound):
        run(root, "switch", "nonesuch")
    assert store.find(root).version == A


def test_recipes_are_listed_with_what_they_are() -> None:
    lines = CliRunner().invoke(app, ["recipes"]).output.splitlines()
    assert [line.split()[0] for line in lines] == ["debug", "default", "gpu-ready", "minimal"]
    assert all(len(line.split()) > 4 for line in lines)


def test_a_recipe_that_is_not_there_is_told_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no recipe 'debgu'"):
        CliRunner().invoke(app, ["build", "--root", str(tmp_path / "x"), "--recipe", "debgu"], catch_exceptions=False)
    assert not (tmp_path / "x").exists()


def with_contents(directory: Path, packages: dict[str, str], items: list[Item]) -> None:
    """Give an image packages and a list of files."""
    (directory / contents.NAME).write_text(contents.dump(items))
    manifest = json.loads((directory / store.MANIFEST).read_text())
    listed = (directory / contents.NAME).read_bytes()
    manifest["files"][contents.NAME] = {"size": len(listed), "sha256": hashlib.sha256(listed).hexdigest()}
    manifest["packages"] = [
        {"name": name, "version": version, "sha256": "", "licenses": ["MIT", "[red]\x1b"]}
        for name, version in packages.items()
    ]
    (directory / store.MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def two(root: Path) -> Path:
    sh = Item("usr/bin/sh", "link", 0o777, link="busybox")
    with_contents(root / A, {"crun": "1", "old": "1"}, [sh, Item("usr/big", "file", 0o644, 5_000_000, "aa" * 32)])
    with_contents(root / B, {"crun": "2", "new": "1"}, [sh, Item("usr/big", "file", 0o644, 9_000_000, "bb" * 32)])
    return root


def test_inspect_shows_packages_with_licenses_and_the_largest_files(two: Path) -> None:
    text = run(two, "inspect")
    assert re.search(r"crun +2 +MIT, \[red\]", text)
    assert "9.00 MB  /usr/big" in text
    assert "\x1b" not in text
    assert "/usr/big" not in run(two, "inspect", "--files", "0")
    found = json.loads(run(two, "inspect", A, "--json"))
    assert found["version"] == A
    assert [one["path"] for one in found["contents"]] == ["usr/bin/sh", "usr/big"]


def test_diff_names_packages_files_and_parts(two: Path) -> None:
    result = CliRunner().invoke(app, ["diff", A, B, "--root", str(two)], standalone_mode=False)
    assert result.return_value == 1
    lines = [" ".join(line.split()[:3]) for line in result.stdout.splitlines()]
    assert lines[:4] == ["~ package crun", "+ package new", "- package old", "~ file /usr/big"]
    assert set(lines[4:]) == {"~ part initrd", "~ part root.erofs", "~ part vmlinux"}
    same = CliRunner().invoke(app, ["diff", A, A, "--root", str(two), "--json"], standalone_mode=False)
    assert (same.return_value, json.loads(same.stdout)) == (0, [])


def test_an_image_without_a_list_of_files_is_told(root: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no list of its files"):
        run(root, "inspect")


def test_an_image_is_exported_and_imported(two: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "image.tar.zst", tmp_path / "other"
    run(two, "export", A, str(file))
    assert run(other, "import", str(file)) == f"{other / A}\n"
    with pytest.raises(NotFound):
        store.find(other)
    run(other, "import", str(file), "--switch")
    assert store.find(other).version == A
