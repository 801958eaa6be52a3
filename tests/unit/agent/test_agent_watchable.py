"""Copies of volumes that the host updates: what a container sees, and in which order."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.agent import watchable
from kata.agent.paths import Paths
from kata.agent.storage import Storages
from kata.agent.watchable import Copy, TooLarge, Watcher
from kata.linux import mountinfo
from kata.protocols import agent_pb2 as pb
from tests.support.waiting import eventually, eventually_async


def publish(volume: Path, version: str, files: dict[str, bytes]) -> None:
    """Update a volume as kubelet does (its atomic writer): a new directory, one rename, and the old one goes."""
    old = os.readlink(volume / "..data") if (volume / "..data").is_symlink() else ""
    directory = volume / f"..{version}"
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    os.symlink(directory.name, volume / "..data_tmp")
    os.rename(volume / "..data_tmp", volume / "..data")
    for name in files:
        if not (volume / name).is_symlink():
            os.symlink(f"..data/{name}", volume / name)
    for link in volume.iterdir():
        if link.is_symlink() and link.name != "..data" and link.name not in files:
            link.unlink()
    if old:
        for file in (volume / old).iterdir():
            file.unlink()
        (volume / old).rmdir()


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Copy]:
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    copy = Copy(*(os.open(tmp_path / name, os.O_PATH | os.O_DIRECTORY) for name in ("source", "target")))
    yield copy
    copy.close()


def tree(directory: Path) -> dict[str, object]:
    return {
        str(path.relative_to(directory)): os.readlink(path) if path.is_symlink() else path.is_dir() or path.read_bytes()
        for path in directory.rglob("*")
    }


def test_updates_as_kubelet_makes_them(copy: Copy, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    publish(source, "1", {"a": b"one", "empty": b"", "gone": b"x"})
    copy.update()
    assert tree(target) == tree(source)
    assert (target / "a").read_bytes() == b"one"
    publish(source, "2", {"a": b"two", "empty": b"", "new": b"y"})
    copy.update()
    assert tree(target) == tree(source)
    assert (target / "a").read_bytes() == b"two"


def test_the_link_changes_after_the_files_and_before_the_old_ones_go(
    copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    publish(source, "1", {"a": b"one", "b": b"one"})
    copy.update()
    publish(source, "2", {"a": b"two", "b": b"two"})
    seen: list[tuple[str, bytes, bytes]] = []

    def look(put: object) -> None:
        seen.append((os.readlink(target / "..data"), (target / "a").read_bytes(), (target / "b").read_bytes()))

    for name in ("rename", "unlink", "rmdir", "mkdir"):
        call = getattr(os, name)

        def wrapped(*arguments: object, _call: object = call, **options: object) -> None:
            _call(*arguments, **options)  # type: ignore[operator]
            look(_call)

        monkeypatch.setattr(os, name, wrapped)
    copy.update()
    assert set(seen) == {("..1", b"one", b"one"), ("..2", b"two", b"two")}, "never a mixture, never a file missing"


def test_modes_and_owners_are_kept(copy: Copy, tmp_path: Path) -> None:
    file = tmp_path / "source/secret"
    file.write_text("s")
    file.chmod(0o440)
    if os.geteuid() == 0:
        os.chown(file, -1, 4711)
    copy.update()
    info, made = file.stat(), (tmp_path / "target/secret").stat()
    assert (made.st_mode, made.st_gid) == (info.st_mode, info.st_gid)


def test_a_file_that_becomes_a_directory_and_back(copy: Copy, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "x").write_text("file")
    copy.update()
    (source / "x").unlink()
    (source / "x").mkdir()
    (source / "x/y").write_text("below")
    copy.update()
    assert tree(target) == tree(source)
    (source / "x/y").unlink()
    (source / "x").rmdir()
    (source / "x").write_text("file")
    copy.update()
    assert tree(target) == tree(source)


@pytest.mark.parametrize(("files", "size"), [(watchable.MAX_ENTRIES + 1, 1), (2, watchable.MAX_BYTES)])
def test_too_large(copy: Copy, tmp_path: Path, files: int, size: int) -> None:
    for number in range(files):
        (tmp_path / f"source/{number}").write_bytes(b"x" * size)
    with pytest.raises(TooLarge):
        copy.update()
    assert tree(tmp_path / "target") == {}


def test_a_container_cannot_lead_the_copy_astray(copy: Copy, tmp_path: Path) -> None:
    source, target, outside = (tmp_path / name for name in ("source", "target", "outside"))
    outside.mkdir()
    (outside / "file").write_text("mine")
    (source / "d").mkdir()
    (source / "d/file").write_text("1")
    copy.update()
    (target / "d/file").unlink()
    (target / "d").rmdir()
    os.symlink(outside, target / "d")
    os.symlink(outside / "file", target / "..kata-new-top")
    (source / "top").write_text("top")
    (source / "d/file").write_text("22")
    copy.follow()
    assert (outside / "file").read_text() == "mine"
    assert list(outside.iterdir()) == [outside / "file"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("size", [10, 3 << 20])
async def test_as_a_storage(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchable, "_INTERVAL_S", 0.02)
    paths = Paths.under(str(tmp_path))
    volume = Path(paths.shared) / "c-1-config"
    publish(volume, "1", {"key": b"1" * size})
    point = f"{paths.sandbox}/watchable/c-1-config"
    storages = Storages(paths)
    held = await storages.acquire(
        [pb.Storage(driver="watchable-bind", source=str(volume), fstype="bind", options=["bind"], mount_point=point)],
        "c",
    )
    try:
        bound = os.stat(point).st_dev == os.stat(volume).st_dev
        assert bound == (size > watchable.MAX_BYTES), "what is large is bound, not copied"
        publish(volume, "2", {"key": b"2" * size})
        eventually(Path(point, "key").read_bytes, "the new text", lambda text: text == b"2" * size)
    finally:
        await storages.release(held)
    assert mountinfo.points_below(paths.base) == []


async def test_an_update_that_hangs_holds_up_nobody(
    copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing a volume is a call to PID 1, which has one thread."""
    monkeypatch.setattr(watchable, "_INTERVAL_S", 0.001)
    begun, hung, closed = threading.Event(), threading.Event(), threading.Event()

    class Hanging(Copy):
        def follow(self) -> None:
            begun.set()
            hung.wait(60)

        def close(self) -> None:
            closed.set()

    watcher = Watcher()
    watcher.add("hanging", Hanging(-1, -1))
    try:
        assert await asyncio.to_thread(begun.wait, 60)
        await asyncio.wait_for(asyncio.to_thread(watcher.remove, "hanging"), 30)
        assert not closed.is_set(), "what is still being used"
        # Another one does not wait for it either.
        (tmp_path / "source/file").write_text("new")
        watcher.add("other", copy)
        await eventually_async((tmp_path / "target/file").exists, "the other volume's update")
    finally:
        hung.set()
    assert await asyncio.to_thread(closed.wait, 60)
    monkeypatch.setattr(copy, "close", lambda: None)  # the fixture does
    watcher.remove("other")
