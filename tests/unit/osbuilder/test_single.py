"""The steps of `kata-osbuilder` on a small root, and the command as a person meets it."""

from __future__ import annotations

import errno
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kata.cli.osbuilder import app
from kata.cli.program import Invocation
from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound, ResourceExhausted
from kata.osbuilder import cpio, root_image, single, store
from kata.osbuilder.recipe import INITRD, Form

needs_erofs = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="mkfs.erofs is not installed")
needs_verity = pytest.mark.skipif(
    shutil.which("veritysetup", path="/usr/sbin:/sbin") is None, reason="veritysetup is not installed"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/kata-agent").write_text("#!/bin/sh\n")
    (root / "usr/bin/kata-agent").chmod(0o755)
    return root


@needs_erofs
def test_the_same_directory_gives_the_same_image(root: Path, tmp_path: Path) -> None:
    single.make(root, tmp_path / "a", Form(), {})
    time.sleep(0.01)
    copy = shutil.copytree(root, tmp_path / "copy")
    single.make(copy, tmp_path / "b", Form(), {"SOURCE_DATE_EPOCH": ""})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    single.make(copy, tmp_path / "b", Form(), {"SOURCE_DATE_EPOCH": "1700000000"})
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()
    assert not list(tmp_path.glob(f"{store.BUILDING}*"))


@needs_erofs
def test_an_image_in_kata_s_layout_has_the_same_file_system(root: Path, tmp_path: Path) -> None:
    single.make(root, tmp_path / "bare", Form(), {})
    single.make(root, tmp_path / "in", Form(partitioned=True), {})
    bare, partitioned = (tmp_path / "bare").read_bytes(), (tmp_path / "in").read_bytes()
    assert partitioned[3 << 20 :].startswith(bare)
    assert partitioned[510:512] == b"\x55\xaa"
    assert len(partitioned) == 128 << 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "in", "rootfs"]


def test_an_initrd_is_the_whole_root(root: Path, tmp_path: Path) -> None:
    single.make(root, tmp_path / "initrd", Form(INITRD), {})
    assert cpio.content((tmp_path / "initrd").read_bytes(), "usr/bin/kata-agent") == b"#!/bin/sh\n"


@needs_erofs
@needs_verity
def test_what_checks_an_image_is_beside_it_and_goes_with_it(root: Path, tmp_path: Path) -> None:
    single.make(root, tmp_path / "image", Form(verity=True), {})
    assert (tmp_path / "image.verity").read_text().startswith("root_hash=")
    single.make(root, tmp_path / "image", Form(), {})
    assert not (tmp_path / "image.verity").exists()


@pytest.mark.parametrize(
    ("damage", "environ", "error", "says"),
    [
        (shutil.rmtree, {}, NotFound, "is not a directory"),
        (lambda root: (root / "usr/bin/kata-agent").unlink(), {}, FailedPrecondition, "has no /usr/bin/kata-agent"),
        (lambda root: (root / "usr/bin/kata-agent").chmod(0o644), {}, FailedPrecondition, "has no /usr/bin/kata-agent"),
        (lambda root: None, {"SOURCE_DATE_EPOCH": "today"}, InvalidArgument, "SOURCE_DATE_EPOCH is 'today'"),
        (lambda root: None, {"SOURCE_DATE_EPOCH": "-1"}, InvalidArgument, "SOURCE_DATE_EPOCH is '-1'"),
    ],
)
def test_what_cannot_be_is_told_and_leaves_nothing(
    root: Path, tmp_path: Path, damage: object, environ: dict[str, str], error: type[KataError], says: str
) -> None:
    damage(root)  # type: ignore[operator]
    with pytest.raises(error, match=says):
        single.make(root, tmp_path / "image", Form(), environ)
    assert not (tmp_path / "image").exists()


def test_a_full_disk_leaves_the_old_image(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(root: Path, target: Path, *rest: object) -> None:
        target.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "image").write_text("old")
    monkeypatch.setattr(root_image, "write_root", full)
    with pytest.raises(ResourceExhausted, match=f"no space left on the file system of {tmp_path}"):
        single.make(root, tmp_path / "image", Form(INITRD), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image", "rootfs"]
    assert (tmp_path / "image").read_text() == "old"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), obj=Invocation(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@needs_erofs
def test_kata_s_words_make_image_and_initrd(root: Path, tmp_path: Path) -> None:
    image, initrd = tmp_path / "x.img", tmp_path / "x-initrd.img"
    assert run("image", "-o", str(image), "-f", "erofs", str(root)) == f"{image}\n"
    assert run("initrd", "-o", str(initrd), str(root)) == f"{initrd}\n"
    assert image.read_bytes()[1024:1028] == bytes.fromhex("e2e1f5e0")
    assert initrd.read_bytes().startswith(b"070701")
    assert run("rootfs", "-l") == "debian\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rootfs", "fedora"), "roots are made of debian, not of fedora"),
        (("rootfs", "-o", "bookworm", "debian"), r"guests are made of trixie \(Debian 13\), not of bookworm"),
        (("image", "-f", "initrd", "rootfs"), "an initrd is no image"),
        (("image", "-f", "ext5", "rootfs"), "unknown format 'ext5'"),
        (("image", "--label", "a label", "rootfs"), "invalid label"),
        (("image", "--partitioned", "--verity", "rootfs"), "dm-verity is for images without a partition table"),
        (("image", "nowhere"), "nowhere is not a directory"),
    ],
)
def test_a_wrong_word_is_told(arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(KataError, match=says):
        run(*arguments)
