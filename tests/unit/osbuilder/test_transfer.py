from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kata import zstd
from kata.errors import AlreadyExists, FailedPrecondition, InvalidArgument, KataError, NotFound, ResourceExhausted
from kata.osbuilder import store, transfer

NAME = "0.1.0-aaaaaaaaaaaa"


@pytest.fixture
def image(tmp_path: Path, make_image: Callable[..., Path]) -> store.GuestImage:
    make_image(tmp_path / "here", NAME, 0)
    return store.find(tmp_path / "here", NAME)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


def nothing_in(root: Path) -> bool:
    return not root.exists() or [path.name for path in root.iterdir()] in ([], [".lock"])


def test_an_image_is_carried_to_another_host(image: store.GuestImage, tmp_path: Path, there: Path) -> None:
    transfer.export(image, tmp_path / "image.tar.zst")
    carried = transfer.import_(tmp_path / "image.tar.zst", there)
    assert carried.directory == there / NAME
    assert carried.manifest == image.manifest
    store.check(carried)
    assert carried.kernel.stat().st_mode & 0o777 == 0o444
    with pytest.raises(NotFound):
        store.find(there)
    assert sorted(path.name for path in there.iterdir()) == [".lock", NAME]
    assert transfer.import_(tmp_path / "image.tar.zst", there) == carried


def test_a_damaged_image_is_not_exported(image: store.GuestImage, tmp_path: Path) -> None:
    image.kernel.write_bytes(bytes(image.kernel.stat().st_size))
    with pytest.raises(FailedPrecondition, match="does not match its digest"):
        transfer.export(image, tmp_path / "image.tar.zst")
    assert not (tmp_path / "image.tar.zst").exists()


def archive(path: Path, entries: dict[str, bytes | str], top: str = NAME) -> Path:
    """An archive of files (bytes) and symbolic links (str), their manifest aside."""
    with zstd.ZstdFile(path, "wb") as compressed, tarfile.open(fileobj=compressed, mode="w") as tar:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name if name.startswith(("/", "..")) else f"{top}/{name}")
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def entries_of(image: store.GuestImage) -> dict[str, bytes | str]:
    return {path.name: path.read_bytes() for path in image.directory.iterdir()}


def newer(entries: dict[str, bytes | str]) -> None:
    manifest = json.loads(entries["manifest.json"])
    manifest["format"] = store.FORMAT + 1
    entries["manifest.json"] = json.dumps(manifest).encode()


def flipped(entries: dict[str, bytes | str]) -> None:
    content = entries["vmlinux"]
    assert isinstance(content, bytes)
    entries["vmlinux"] = bytes([content[0] ^ 1]) + content[1:]


def terminal_codes(entries: dict[str, bytes | str]) -> None:
    manifest = json.loads(entries["manifest.json"])
    manifest["kernel_release"] = "6.12\x1b[31m"
    entries["manifest.json"] = json.dumps(manifest).encode()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (newer, FailedPrecondition, "made by a newer kata"),
        (flipped, FailedPrecondition, "vmlinux does not match its digest"),
        (terminal_codes, FailedPrecondition, "invalid kernel_release"),
        (lambda entries: entries.pop("initrd"), FailedPrecondition, "initrd is missing"),
        (lambda entries: entries.pop("manifest.json"), FailedPrecondition, "damaged"),
        (lambda entries: entries.update({"more": b"x"}), InvalidArgument, "'more', which is not one of"),
        (lambda entries: entries.update({"../../x": b"x"}), InvalidArgument, "leads out of the directory"),
        (lambda entries: entries.update({"host": "/etc"}), InvalidArgument, "'host', which is not one of"),
        (lambda entries: entries.update({"host": "/etc", "host/x": b"x"}), FailedPrecondition, "symbolic link"),
        (lambda entries: entries.update({"vmlinux": "/etc/passwd"}), FailedPrecondition, "damaged"),
        (lambda entries: entries.update({f"f{n}": b"" for n in range(2000)}), ResourceExhausted, "more files"),
    ],
)
def test_what_is_not_what_it_says_is_refused(
    image: store.GuestImage,
    tmp_path: Path,
    there: Path,
    change: Callable[[dict[str, bytes | str]], object],
    error: type[KataError],
    says: str,
) -> None:
    entries = entries_of(image)
    change(entries)
    with pytest.raises(error) as caught:
        transfer.import_(archive(tmp_path / "x.tar.zst", entries), there)
    assert says in caught.value.message
    assert nothing_in(there)


def test_a_version_that_is_another_ones_is_refused(image: store.GuestImage, tmp_path: Path, there: Path) -> None:
    with pytest.raises(InvalidArgument, match="not that of its manifest"):
        transfer.import_(archive(tmp_path / "x.tar.zst", entries_of(image), top="0.1.0-bbbbbbbbbbbb"), there)
    for top in (".build-x", "current", ".lock", "a b"):
        with pytest.raises(KataError):
            transfer.import_(archive(tmp_path / "x.tar.zst", entries_of(image), top=top), there)
    assert nothing_in(there)


@pytest.mark.parametrize("content", [b"", b"hello", zstd.compress(b"hello"), zstd.compress(bytes(5000))[:-3]])
def test_what_is_no_archive_is_refused(tmp_path: Path, there: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InvalidArgument):
        transfer.import_(tmp_path / "x", there)
    assert nothing_in(there)
    with pytest.raises(NotFound, match="no such file"):
        transfer.import_(tmp_path / "nothing", there)


def test_an_image_that_is_there_is_not_replaced_by_another(
    image: store.GuestImage, tmp_path: Path, there: Path, make_image: Callable[..., Path]
) -> None:
    transfer.export(image, tmp_path / "image.tar.zst")
    directory = make_image(there, NAME, 0)
    manifest = json.loads((directory / store.MANIFEST).read_text())
    manifest["files"]["initrd"]["sha256"] = "00" * 32
    (directory / store.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(AlreadyExists):
        transfer.import_(tmp_path / "image.tar.zst", there)


def test_what_a_killed_import_left_behind_goes(image: store.GuestImage, tmp_path: Path, there: Path) -> None:
    os.makedirs(there / ".build-import/half")
    transfer.export(image, tmp_path / "image.tar.zst")
    transfer.import_(tmp_path / "image.tar.zst", there)
    assert sorted(path.name for path in there.iterdir()) == [".lock", NAME]
