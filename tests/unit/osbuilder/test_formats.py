"""Root images of a small tree, and dm-verity over them. What a guest makes of them: tests/vm/test_image_boot.py."""

from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from kata.errors import InvalidArgument
from kata.osbuilder import formats, verity
from kata.osbuilder.recipe import Form

from .trees import tree

DATE = 1_700_000_000
UUID = "00000000-0000-0000-0000-000000000001"


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


def write(root: Path, form: Form) -> Path:
    image = root.parent / f"root.{form.format}"
    formats.FILE_SYSTEMS[form.format].write(root, image, form, DATE, UUID, None)
    return image


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@needs("mkfs.erofs", "mkfs.ext4")
@pytest.mark.parametrize("name", ["erofs", "ext4"])
def test_the_same_content_gives_the_same_image_and_another_another(twins: list[Path], name: str) -> None:
    images = [write(twins[0], Form(name))]
    # The time of the last change of an inode is the clock's.
    time.sleep(1.1)
    (twins[1] / "a/0").chmod(0o4755)
    images.append(write(twins[1], Form(name)))
    assert digest(images[0]) == digest(images[1])
    (twins[1] / "a/1").write_text("changed")
    assert digest(write(twins[1], Form(name))) != digest(images[0])


@needs("mkfs.erofs")
def test_an_erofs_image_is_not_larger_than_what_it_is_asked_room_for(
    twins: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = formats.erofs_bytes(formats._used(twins[0]))
    assert write(twins[0], Form()).stat().st_size <= asked
    usage = shutil.disk_usage(twins[0])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=asked - 1))
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(twins[0], Form())
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(twins[0].parent))


def listed(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


@needs("mkfs.ext4", "e2fsck", "debugfs", "dumpe2fs")
def test_an_ext4_image_is_clean_labelled_and_has_room(twins: list[Path]) -> None:
    image = write(twins[0], Form("ext4", free_mib=20, label="mine"))
    listed(["e2fsck", "-f", "-n", str(image)])
    about = dict(line.split(":", 1) for line in listed(["dumpe2fs", "-h", str(image)]).splitlines() if ":" in line)
    assert about["Filesystem volume name"].strip() == "mine"
    assert 20 << 20 <= int(about["Free blocks"]) * 4096 <= 40 << 20
    assert "has_journal" not in about["Filesystem features"]
    assert "Mode:  04755" in listed(["debugfs", "-R", "stat /a/0", str(image)])
    assert listed(["debugfs", "-R", "cat /c/7", str(image)]) == "c/7" * 100


@needs("mkfs.xfs", "xfs_db")
def test_an_xfs_image_is_sound_and_has_the_files(twins: list[Path]) -> None:
    image = write(twins[0], Form("xfs", label="mine"))
    listed(["xfs_repair", "-n", "-f", str(image)])
    assert '"mine"' in listed(["xfs_db", "-r", "-f", "-c", "label", str(image)])
    assert "core.size = 300" in listed(["xfs_db", "-r", "-f", "-c", "path /c/7", "-c", "print", str(image)])
    assert sorted(path.name for path in image.parent.iterdir()) == ["root", "root.xfs"]


def test_a_prototype_says_what_is_where(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", ["a/0"], 1)
    for path in (root, root / "a"):
        path.chmod(0o755)
    assert list(formats.xfs_prototype(root)) == [
        *("/", "0 0", "d--755 0 0", "a d--755 0 0"),
        *(f"0 -u-755 0 0 {root}/a/0", "$", "link l--777 0 0 a/0", "$"),
    ]
    (root / "a b").touch()
    with pytest.raises(InvalidArgument, match="does not take such a name"):
        list(formats.xfs_prototype(root))


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"format": "ext5"}, "unknown format 'ext5'"),
        ({"format": "initrd", "verity": True}, "no disk"),
        ({"format": "xfs", "verity": True}, "for erofs and ext4"),
    ],
)
def test_a_form_that_cannot_be_is_refused(form: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        Form(**form)  # type: ignore[arg-type]


def is_sound(image: Path, sealed: verity.Sealed) -> bool:
    options = ["--no-superblock", f"--hash-offset={sealed.blocks * 4096}", f"--data-blocks={sealed.blocks}"]
    options += ["--hash=sha256", f"--salt={sealed.salt}", str(image), str(image), sealed.root_hash]
    return subprocess.run(["veritysetup", "verify", *options], capture_output=True, timeout=60).returncode == 0


@needs("mkfs.erofs", "mkfs.ext4", "veritysetup")
@pytest.mark.parametrize("name", ["erofs", "ext4"])
def test_a_flipped_bit_anywhere_is_found(twins: list[Path], name: str) -> None:
    image = write(twins[0], Form(name))
    sealed = verity.seal(image, "00ff")
    assert is_sound(image, sealed)
    assert verity.seal(write(twins[1], Form(name)), "00ff") == sealed
    size = image.stat().st_size
    # The superblock, data, the last byte of data, the first of the tree, the last of the file.
    for offset in (1024, size // 2, sealed.blocks * 4096 - 1, sealed.blocks * 4096, size - 1):
        with image.open("r+b") as file:
            file.seek(offset)
            (before,) = file.read(1)
            for content, sound in ((before ^ 1, False), (before, True)):
                file.seek(offset)
                file.write(bytes([content]))
                file.flush()
                assert is_sound(image, sealed) is sound, offset


@needs("veritysetup")
def test_what_is_no_whole_block_is_filled_up(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * 5000)
    sealed = verity.seal(image, "00")
    assert sealed.blocks == 2
    assert image.stat().st_size == 3 * 4096
    assert sealed.text.startswith(f"root_hash={sealed.root_hash},salt=00,data_blocks=2,data_block_size=4096,")
