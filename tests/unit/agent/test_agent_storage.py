from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from kata.agent.paths import Paths
from kata.agent.storage import Storages, parse_size
from kata.errors import FailedPrecondition, InvalidArgument
from kata.linux import mountinfo
from kata.protocols import agent_pb2 as pb

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths.under(str(tmp_path))
    os.makedirs(paths.shared)
    return paths


def tmpfs(point: str, **fields: object) -> pb.Storage:
    return pb.Storage(driver="ephemeral", source="shm", fstype="tmpfs", mount_point=point, **fields)  # type: ignore[arg-type]


def mounted(paths: Paths) -> list[str]:
    return [point.removeprefix(paths.base) for point in mountinfo.points_below(paths.base)]


async def test_the_last_user_unmounts(paths: Paths) -> None:
    storages = Storages(paths)
    request = tmpfs(f"{paths.sandbox}/shm", options=["size=1m", "mode=1777"])
    first = await storages.acquire([request], "a")
    second = await storages.acquire([request], "b")
    assert mounted(paths) == ["/sandbox/shm"]
    assert stat.S_IMODE(os.stat(f"{paths.sandbox}/shm").st_mode) == 0o1777
    await storages.release(first)
    assert mounted(paths) == ["/sandbox/shm"]
    await storages.release(second)
    assert mounted(paths) == []


async def test_a_shared_storage_lives_until_the_sandbox_goes(paths: Paths) -> None:
    storages = Storages(paths)
    assert await storages.acquire([tmpfs(f"{paths.sandbox}/x", shared=True)], "a") == []
    assert mounted(paths) == ["/sandbox/x"]
    await storages.release_all()
    assert mounted(paths) == []


async def test_what_the_host_has_is_flushed(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories and disks of the host; none that an overlay keeps nothing on."""
    flushed: list[str] = []
    monkeypatch.setattr("kata.agent.storage.syncfs", lambda fd: flushed.append(os.readlink(f"/proc/self/fd/{fd}")))
    storages = Storages(paths)
    points = {name: f"{paths.sandbox}/{name}" for name in ("shared", "disk", "read-only", "scratch", "memory", "root")}
    # tmpfs stands for any file system here.
    tree = pb.Storage(driver="9p", source="x", fstype="tmpfs", mount_point=points["shared"])
    disks = [
        pb.Storage(driver="blk", source="x", fstype="tmpfs", mount_point=points[name], options=options)
        for name, options in (("disk", []), ("read-only", ["ro"]), ("scratch", []))
    ]
    upper, work, lower = f"{points['scratch']}/upper", f"{points['scratch']}/work", points["read-only"]
    overlay = pb.Storage(
        driver="overlayfs",
        source="overlay",
        fstype="overlay",
        mount_point=points["root"],
        options=[f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}"],
        driver_options=[f"io.katacontainers.volume.overlayfs.create_directory={path}" for path in (upper, work)],
    )
    held = await storages.acquire([tree, *disks, tmpfs(points["memory"]), overlay], "a")
    try:
        assert await storages.flush()
        assert flushed == [points["disk"], points["shared"]]
    finally:
        await storages.release(held)
    assert await storages.flush()
    assert len(flushed) == 2


async def test_a_flush_that_fails_is_logged(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("kata.agent.storage.syncfs", fail)
    storages = Storages(paths)
    tree = pb.Storage(driver="9p", source="x", fstype="tmpfs", mount_point=f"{paths.sandbox}/shared")
    held = await storages.acquire([tree], "a")
    assert not await storages.flush()
    await storages.release(held)
    assert f"what was written to {paths.sandbox}/shared is not on the host: Input/output error" in caplog.text


@pytest.mark.parametrize(
    "bad",
    [
        pb.Storage(driver="blk", mount_point="BASE/x"),
        pb.Storage(driver="", mount_point="BASE/x"),
        tmpfs("/etc"),
        tmpfs("relative"),
        tmpfs(""),
        tmpfs("BASE"),
        tmpfs("BASE/../x"),
        tmpfs("BASE/x\0y"),
        tmpfs("BASE/x", options=["fsgid=root"]),
        pb.Storage(driver="bind", source="/etc", mount_point="BASE/x"),
        pb.Storage(driver="ephemeral", fstype="hugetlbfs", mount_point="BASE/x", options=["pagesize=3Mi", "size=3Mi"]),
        pb.Storage(driver="ephemeral", fstype="hugetlbfs", mount_point="BASE/x"),
    ],
)
async def test_bad_requests_undo_the_good_ones_before_them(paths: Paths, bad: pb.Storage) -> None:
    request = pb.Storage()
    request.CopyFrom(bad)
    request.mount_point = bad.mount_point.replace("BASE", paths.base)
    with pytest.raises(InvalidArgument):
        await Storages(paths).acquire([tmpfs(f"{paths.sandbox}/good"), request], "a")
    assert mounted(paths) == []


async def test_a_mount_that_fails_is_told_with_its_reason(paths: Paths) -> None:
    with pytest.raises(FailedPrecondition, match=r"cannot mount storage ephemeral at .*: mount nonsense shm"):
        await Storages(paths).acquire(
            [pb.Storage(driver="ephemeral", source="shm", fstype="nonsense", mount_point=f"{paths.sandbox}/x")], "a"
        )


async def test_a_link_planted_by_a_container_leads_nowhere(paths: Paths, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    os.symlink(outside, f"{paths.shared}/local")
    for driver in ("local", "ephemeral"):
        request = pb.Storage(driver=driver, fstype="tmpfs", mount_point=f"{paths.shared}/local/data")
        with pytest.raises(FailedPrecondition):
            await Storages(paths).acquire([request], "a")
    assert list(outside.iterdir()) == []
    assert mounted(paths) == []


async def test_local_makes_a_directory(paths: Paths) -> None:
    point = f"{paths.shared}/s/local/data"
    storages = Storages(paths)
    held = await storages.acquire(
        [pb.Storage(driver="local", options=["mode=0770", "fsgid=1234"], mount_point=point)], "a"
    )
    status = os.stat(point)
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o2770, 1234)
    await storages.release(held)
    assert os.path.isdir(point)


async def test_a_new_upper_directory_is_like_the_root_below(paths: Paths) -> None:
    lower, upper, work = (f"{paths.base}/{name}" for name in ("lower", "c1/upper", "c1/work"))
    os.mkdir(lower, 0o700)
    os.chown(lower, 12, 34)
    request = pb.Storage(
        driver="overlayfs",
        options=[f"lowerdir={lower}:{paths.shared}", f"upperdir={upper}", f"workdir={work}"],
        driver_options=[f"io.katacontainers.volume.overlayfs.create_directory={path}" for path in (upper, work)],
        mount_point=f"{paths.shared}/over",
    )
    storages = Storages(paths)
    held = await storages.acquire([tmpfs(f"{paths.base}/c1"), request], "c1")
    try:
        status = os.stat(f"{paths.shared}/over")
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o700, 12, 34)
    finally:
        await storages.release(held)
    assert mounted(paths) == []


async def test_bind_and_overlay(paths: Paths) -> None:
    lower = f"{paths.shared}/lower"
    os.mkdir(lower)
    Path(lower, "word").write_text("below")
    os.mkdir(f"{paths.base}/c1")
    storages = Storages(paths)
    held = await storages.acquire(
        [
            tmpfs(f"{paths.base}/c1"),
            pb.Storage(driver="bind", source=lower, options=["bind", "ro"], mount_point=f"{paths.shared}/bound"),
            pb.Storage(
                driver="overlayfs",
                options=[f"lowerdir={lower}", "io.katacontainers.fs-opt.overlay-rw"],
                mount_point=f"{paths.shared}/over",
            ),
        ],
        "c1",
    )
    try:
        assert Path(paths.shared, "bound/word").read_text() == "below"
        with pytest.raises(OSError, match="Read-only"):
            Path(paths.shared, "bound/new").write_text("x")
        Path(paths.shared, "over/word").write_text("above")
        assert Path(lower, "word").read_text() == "below"
    finally:
        await storages.release(held)
    assert mounted(paths) == []


async def test_a_part_of_a_volume_may_be_a_file(paths: Paths) -> None:
    file = Path(paths.shared, "@0/deep/file")
    file.parent.mkdir(parents=True)
    file.write_text("part")
    point = f"{paths.sandbox}/parts/a-0"
    storages = Storages(paths)
    request = pb.Storage(driver="bind", source=str(file), options=["bind"], mount_point=point)
    for _ in range(2):
        held = await storages.acquire([request], "a")
        assert Path(point).read_text() == "part"
        await storages.release(held)
        assert mounted(paths) == []


@pytest.mark.parametrize("link", ["deep", "deep/file"])
async def test_a_part_is_not_where_a_link_leads(paths: Paths, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    path = Path(paths.shared, "@0", link)
    path.parent.mkdir(parents=True)
    path.symlink_to(outside if link == "deep" else outside / "file")
    source, point = f"{paths.shared}/@0/deep/file", f"{paths.sandbox}/parts/a-0"
    with pytest.raises(FailedPrecondition):
        await Storages(paths).acquire([pb.Storage(driver="bind", source=source, mount_point=point)], "a")
    assert mounted(paths) == []


async def test_fs_group(paths: Paths) -> None:
    storages = Storages(paths)
    point = f"{paths.sandbox}/x"
    request = tmpfs(point)
    request.fs_group.group_id = 77
    held = await storages.acquire([request], "a")
    status = os.stat(point)
    assert status.st_gid == 77
    assert status.st_mode & stat.S_ISGID
    await storages.release(held)


class SlowChown:
    """Stands for `os.fchown` on a file system that takes its time; keeps who called it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.released = threading.Event()
        self.thread: threading.Thread | None = None
        self._loop = asyncio.get_running_loop()

    def __call__(self, *_: object) -> None:
        self.thread = threading.current_thread()
        self._loop.call_soon_threadsafe(self.begun.set)
        # On the loop's thread it would wait for nothing.
        assert self.thread is threading.main_thread() or self.released.wait(60)


async def test_a_long_change_of_group_keeps_nobody_waiting(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowChown()
    monkeypatch.setattr(os, "fchown", slow)
    storages = Storages(paths)
    request = tmpfs(f"{paths.sandbox}/slow")
    request.fs_group.group_id = 77
    taking = [asyncio.create_task(storages.acquire([request], owner)) for owner in "ab"]
    await slow.begun.wait()
    assert slow.thread is not threading.main_thread()
    other = await storages.acquire([tmpfs(f"{paths.sandbox}/other")], "c")
    await storages.release(other)
    slow.released.set()
    first, second = await asyncio.gather(*taking)
    assert mounted(paths) == ["/sandbox/slow"], "who comes meanwhile does not mount it again"
    await storages.release(first)
    assert mounted(paths) == ["/sandbox/slow"]
    await storages.release(second)
    assert mounted(paths) == []


async def test_who_gives_up_leaves_nothing_mounted(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowChown()
    monkeypatch.setattr(os, "fchown", slow)
    storages = Storages(paths)
    request = tmpfs(f"{paths.sandbox}/slow")
    request.fs_group.group_id = 77
    taking = asyncio.create_task(storages.acquire([request], "a"))
    await slow.begun.wait()
    taking.cancel()
    slow.released.set()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert mounted(paths) == []


def test_sizes() -> None:
    assert [parse_size(text) for text in ("5", "2M", "2Mi", "1G", "1Gi", "4kB")] == [
        5,
        2 << 20,
        2 << 20,
        1 << 30,
        1 << 30,
        4096,
    ]
    for bad in ("", "M", "2X", "-1", "1.5G"):
        with pytest.raises(InvalidArgument):
            parse_size(bad)
