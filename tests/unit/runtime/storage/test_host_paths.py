"""What the paths and devices of a spec lead to on this host."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kata.errors import InvalidArgument
from kata.linux.mount import MS_PRIVATE, MS_SHARED, mount, set_propagation, umount
from kata.linux.mount import bind as bind_mount
from kata.runtime.storage import direct_volume
from kata.runtime.storage.host_paths import (
    BlockNode,
    HostView,
    RootfsMount,
    look_at_exports,
    look_at_paths,
    look_at_sources,
    random_token,
    shm_size,
)

#: A number that no driver has.
NUMBER = (240, 7)


def bind(source: object) -> dict[str, Any]:
    return {"destination": "/x", "type": "bind", "source": str(source)}


def look(*mounts: dict[str, Any], records: str = "/nowhere", **spec: Any) -> HostView:
    made: Any = {"mounts": list(mounts), **spec}
    return look_at_paths(made, records=records)


def test_nothing_named_is_nothing_seen() -> None:
    assert look_at_paths({}) == HostView()
    assert look({"destination": "/proc", "type": "proc", "source": "proc"}) == HostView()


def test_files_and_directories(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    seen = look(*map(bind, (tmp_path, file, link, tmp_path / "fifo", tmp_path / "absent", "/a\0b"))).paths
    assert set(seen) == {str(tmp_path), str(file), str(link), str(tmp_path / "fifo")}
    info = file.stat()
    assert seen[str(link)] == seen[str(file)]
    assert seen[str(file)].identity == (info.st_dev, info.st_ino)
    assert (seen[str(file)].is_file, seen[str(tmp_path)].is_file) == (True, False)
    assert [seen[str(path)].is_shareable for path in (file, tmp_path, tmp_path / "fifo")] == [True, True, False]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_where_a_file_is_whatever_leads_there(tmp_path: Path) -> None:
    for name in ("a", "a/sub", "a/sub/deep", "b", "tree/@0"):
        (tmp_path / name).mkdir(parents=True)
    bound = [tmp_path / "b", tmp_path / "tree/@0"]
    for point in bound:
        bind_mount(str(tmp_path / "a/sub"), str(point))
    mount("tmpfs", str(tmp_path / "a/sub/deep"), "tmpfs")
    try:
        names = ("a", "a/sub", "b", "a/sub/deep")
        view = look_at_sources([str(tmp_path / name) for name in names])
        exports = look_at_exports(str(tmp_path / "tree"))
        outer, sub, elsewhere, beneath = (view.paths[str(tmp_path / name)].place for name in names)
    finally:
        for point in (tmp_path / "a/sub/deep", *bound):
            umount(str(point))
    assert outer
    assert sub
    assert elsewhere
    assert beneath
    assert sub.path == f"{outer.path}/sub" == elsewhere.path == exports["@0"].path
    assert (sub.filesystem, sub.terms) == (elsewhere.filesystem, elsewhere.terms)
    assert sub.mount == outer.mount != elsewhere.mount
    assert (outer.submounts, sub.submounts) == (frozenset({"sub/deep"}), frozenset({"deep"}))
    assert (beneath.path, beneath.submounts) == ("/", frozenset())
    assert set(exports) == {"@0"}


def test_the_mounts_of_a_rootfs_are_looked_at(tmp_path: Path) -> None:
    seen = look_at_paths({}, [RootfsMount("ext4", str(tmp_path)), RootfsMount("overlay", "overlay")])
    assert set(seen.paths) == {str(tmp_path)}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a device node")
def test_a_device_node_without_a_device(tmp_path: Path) -> None:
    os.mknod(tmp_path / "disk", 0o060660, os.makedev(*NUMBER))
    seen = look(bind(tmp_path / "disk"))
    assert seen.paths[str(tmp_path / "disk")].block == NUMBER
    assert seen.disks == {}


def test_the_disks_of_this_host() -> None:
    entries = sorted(Path("/sys/dev/block").iterdir())
    devices = []
    for entry in entries:
        major, minor = map(int, entry.name.split(":"))
        devices.append({"path": "/dev/x", "type": "b", "major": major, "minor": minor})
    seen = look(linux={"devices": [*devices, {"path": "/dev/y", "type": "b", "major": NUMBER[0], "minor": NUMBER[1]}]})
    assert seen.disks == {
        (device["major"], device["minor"]): BlockNode(
            "/dev/" + (entry / "uevent").read_text().partition("DEVNAME=")[2].split()[0],
            (entry / "ro").read_text().strip() == "1",
        )
        for entry, device in zip(entries, devices, strict=True)
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
@pytest.mark.parametrize(("name", "engines"), [("shm", True), ("data", False)])
def test_shared_memory_that_an_engine_has_made(tmp_path: Path, name: str, engines: bool) -> None:
    source = tmp_path / name
    source.mkdir()
    entry = {**bind(source), "destination": "/dev/shm/"}
    assert not look(entry).paths[str(source)].engines_shm, "a directory is a volume"
    mount("shm", str(source), "tmpfs", 0, "size=3m")
    try:
        assert look(entry).paths[str(source)].engines_shm == engines
        made: Any = {"mounts": [bind(source), entry]}
        assert shm_size(made) == (3 << 20 if engines else 0)
    finally:
        umount(str(source))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_a_private_mount_that_is_to_receive_others(tmp_path: Path) -> None:
    source = str(tmp_path)
    mount("volume", source, "tmpfs")
    try:
        set_propagation(source, MS_PRIVATE)
        assert look({**bind(tmp_path), "options": ["rbind", "rslave"]}).private == {source}
        assert look({**bind(tmp_path), "options": ["rbind", "rprivate"]}).private == set(), "nobody asks"
        set_propagation(source, MS_SHARED)
        assert look({**bind(tmp_path), "options": ["rbind", "rshared"]}).private == set()
        assert look({**bind("/nonexistent"), "options": ["rbind", "rslave"]}).private == set()
    finally:
        umount(source)


def test_without_an_engines_shared_memory_there_is_no_size() -> None:
    made: Any = {"mounts": [{"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=1g"]}]}
    assert shm_size(made) == shm_size({}) == 0


def test_the_record_of_a_direct_volume(tmp_path: Path) -> None:
    records = str(tmp_path / "records")
    image = tmp_path / "image"
    image.touch()
    direct_volume.add("/volume", json.dumps({"volume-type": "block", "device": str(image), "fstype": "xfs"}), records)
    seen = look(bind("/volume"), bind("/volume/."), bind("/other"), records=records)
    assert set(seen.volumes) == {"/volume", "/volume/."}
    assert seen.volumes["/volume"].device == str(image)
    assert seen.paths[str(image)].is_file
    assert look({**bind("/volume"), "type": "ext4"}, records=records).volumes == {}, "only a bind is one"
    Path(records, direct_volume.name_of("/volume"), "mountInfo.json").write_text("{")
    with pytest.raises(InvalidArgument, match="mount info"):
        look(bind("/volume"), records=records)


def test_tokens_differ() -> None:
    tokens = {random_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(token) == 16 and int(token, 16) >= 0 for token in tokens)
