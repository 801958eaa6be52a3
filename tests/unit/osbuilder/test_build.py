"""The driver's promises that need no packages: refusals, leftovers, publishing. Builds are in tests/vm."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kata.errors import DeadlineExceeded, FailedPrecondition, PermissionDenied, ResourceExhausted
from kata.osbuilder import agent_files, build, commands, intermediate, rootfs, store
from kata.osbuilder.build import BuildOptions
from kata.osbuilder.commands import Progress
from kata.osbuilder.inputs import Inputs
from kata.osbuilder.intermediate import Intermediate
from kata.osbuilder.kernel import CustomKernel
from kata.osbuilder.packages import Package, PackageCache, PackageSet
from kata.osbuilder.recipe import Recipe

KERNEL = Package("linux-image-6.12.118+deb13-amd64", "6.12.118-1", "k.deb", 1, "00" * 32)
INPUTS = Inputs(PackageSet(KERNEL, (), ()), Recipe("default"), agent="a", builder="b")


@pytest.fixture
def options(tmp_path: Path) -> BuildOptions:
    return BuildOptions(images=tmp_path / "images", cache=tmp_path / "cache")


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough of a root to come to the first package."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(commands, "require", lambda tools: None)


def staged(images: Path, content: str = "x") -> Path:
    staging = images / f"{store.BUILDING}{INPUTS.version}"
    staging.mkdir(parents=True)
    (staging / "host").mkdir()
    for name in (*store.FILES, "root.erofs", "host/virtiofsd"):
        (staging / name).write_text(f"{name} {content}")
    (staging / "host/virtiofsd").chmod(0o755)
    build._write_manifest(staging, INPUTS, 1_700_000_000, {KERNEL.name: ["GPL-2"]})
    return staging


def test_others_than_root_are_told(options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionDenied, match="only root"):
        build.build(options)
    assert not options.images.exists()


@pytest.mark.usefixtures("as_root")
def test_a_full_disk_is_told_and_leaves_nothing(options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(options: BuildOptions, progress: Progress) -> store.GuestImage:
        (options.images / ".build-x/root").mkdir(parents=True)
        (options.cache / ".build-base").mkdir()
        raise OSError(errno.ENOSPC, "No space left on device", str(options.images / ".build-x/root/file"))

    monkeypatch.setattr(build, "_build", full)
    with pytest.raises(ResourceExhausted, match="no space left") as caught:
        build.build(options)
    assert caught.value.hint
    assert [path.name for path in options.images.iterdir()] == [".lock"]
    assert [path.name for path in options.cache.iterdir()] == [".lock"]


@pytest.mark.usefixtures("as_root")
def test_a_build_that_is_interrupted_leaves_nothing(options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(options: BuildOptions, progress: Progress) -> store.GuestImage:
        staged(options.images)
        (options.cache / ".build-base/root").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.build(options)
    assert [path.name for path in options.images.iterdir()] == [".lock"]
    assert [path.name for path in options.cache.iterdir()] == [".lock"]


@pytest.mark.usefixtures("as_root")
def test_an_unusable_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="Not a directory"):
        build.build(BuildOptions(images=tmp_path / "file/images", cache=tmp_path / "cache"))


@pytest.mark.usefixtures("as_root")
def test_a_directory_that_may_not_be_written_is_told(options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> store.GuestImage:
        raise PermissionError(errno.EACCES, "Permission denied", "/var/lib/kata")

    monkeypatch.setattr(build, "_build", refused)
    with pytest.raises(FailedPrecondition, match="/var/lib/kata cannot be written: permission denied") as caught:
        build.build(options)
    assert caught.value.hint == "name other directories with --root and --cache"


@pytest.mark.usefixtures("as_root")
def test_the_mask_of_a_user_is_not_part_of_an_image(options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(options: BuildOptions, progress: Progress) -> store.GuestImage:
        (options.images / "file").touch()
        assert (options.images / "file").stat().st_mode & 0o777 == 0o644
        raise FailedPrecondition("seen")

    monkeypatch.setattr(build, "_build", look)
    before = os.umask(0o077)
    try:
        with pytest.raises(FailedPrecondition, match="seen"):
            build.build(options)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)


@pytest.mark.usefixtures("as_root")
def test_a_build_that_waits_says_for_whom(options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_LOCK_TIMEOUT_S", 0.1)
    steps: list[str] = []
    options.cache.mkdir()
    with store.lock(options.cache, timeout=0), pytest.raises(DeadlineExceeded, match=rf"process {os.getpid()} \("):
        build.build(options, steps.append)
    (said,) = steps
    assert said.startswith(f"waiting for process {os.getpid()} (")
    assert said.endswith(f"), which is changing {options.cache}")


@pytest.mark.usefixtures("as_root")
def test_leftovers_of_a_killed_build_go_first(options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    staged(options.images)
    (options.images / f"{store.BUILDING}current").symlink_to("nowhere")
    seen: list[list[str]] = []

    def look(options: BuildOptions, progress: Progress) -> store.GuestImage:
        seen.append([path.name for path in options.images.iterdir()])
        return build._publish(options.images, staged(options.images), INPUTS.version, progress)

    monkeypatch.setattr(build, "_build", look)
    build.build(options)
    assert seen == [[".lock"]]


def test_a_published_image_is_complete_and_current(tmp_path: Path) -> None:
    steps: list[str] = []
    image = build._publish(tmp_path, staged(tmp_path), INPUTS.version, steps.append)
    assert image == store.find(tmp_path)
    assert image.version == INPUTS.version
    store.check(image)
    assert steps[-1] == f"image {INPUTS.version} is ready"
    assert not list(tmp_path.glob(f"{store.BUILDING}*"))
    assert set(image.manifest["files"]) == {*store.FILES, "root.erofs", "host/virtiofsd"}
    assert (image.directory / "host/virtiofsd").stat().st_mode & 0o777 == 0o555
    assert image.manifest["kernel_release"] == "6.12.118+deb13-amd64"
    assert image.manifest["date"] == "2023-11-14T22:13:20Z"
    assert [(one["name"], one["licenses"]) for one in image.manifest["packages"]] == [(KERNEL.name, ["GPL-2"])]


def test_publishing_again_repairs_what_was_damaged(tmp_path: Path) -> None:
    image = build._publish(tmp_path, staged(tmp_path), INPUTS.version, lambda _: None)
    assert image.rootfs
    image.rootfs.chmod(0o644)
    image.rootfs.write_text("damaged")
    (image.directory / "host/virtiofsd").unlink()
    build._publish(tmp_path, staged(tmp_path), INPUTS.version, lambda _: None)
    store.check(store.find(tmp_path))


def test_nothing_is_done_for_an_image_that_exists(options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    published = build._publish(options.images, staged(options.images), INPUTS.version, lambda _: None)
    (options.images / store.CURRENT).unlink()
    monkeypatch.setattr(build, "_resolve", lambda *_: INPUTS.packages)
    monkeypatch.setattr(build, "Inputs", lambda *_: INPUTS)
    steps: list[str] = []
    assert build._build(options, steps.append) == published
    assert steps == [f"image {INPUTS.version} is up to date"]
    assert store.find(options.images) == published


def test_the_cache_and_the_agent_have_defaults() -> None:
    options = BuildOptions()
    assert options.cache == Path("/var/cache/kata")
    assert options.agent == agent_files.source_directory()
    assert PackageCache(options.cache).path(KERNEL) == Path("/var/cache/kata/debs/k.deb")


OWN = replace(INPUTS, kernel=CustomKernel(Path("k"), "6.1-kata1-x", "6.1-kata1", 7))


@pytest.fixture
def assembled(options: BuildOptions, monkeypatch: pytest.MonkeyPatch) -> BuildOptions:
    """Everything but the packages: a build comes to the image's trial."""
    base = options.cache / "base/x"
    (base / "host").mkdir(parents=True)
    for name in ("vmlinux", "initrd", intermediate.COPYRIGHT):
        (base / name).write_text(name)
    options.images.mkdir()
    monkeypatch.setattr(build, "_inputs", lambda *_: ({}, OWN))
    monkeypatch.setattr(build, "_base", lambda *_: Intermediate(base, 7, {}))
    monkeypatch.setattr(rootfs, "unpack_archive", lambda _, root: (root / "usr/bin").mkdir(parents=True))
    monkeypatch.setattr(rootfs, "compile_python", lambda *_, **__: None)
    monkeypatch.setattr(rootfs, "check", lambda *_: None)
    monkeypatch.setattr(build, "write_root", lambda _, image, *__: image.write_text("root"))
    return options


def test_an_image_is_tried_before_others_see_it(assembled: BuildOptions) -> None:
    seen: list[bool] = []

    def trial(directory: Path) -> None:
        assert all((directory / name).is_file() for name in store.FILES)
        seen.append((assembled.images / OWN.version).exists() or (assembled.images / store.CURRENT).exists())

    image = build._build(replace(assembled, trial=trial), lambda _: None)
    assert seen == [False]
    assert image == store.find(assembled.images)
    assert image.manifest["kernel"] == "6.1-kata1-x"
    assert image.manifest["kernel_release"] == "6.1-kata1"


def test_an_image_that_does_not_boot_leaves_the_current_one(assembled: BuildOptions) -> None:
    before = build._publish(assembled.images, staged(assembled.images), INPUTS.version, lambda _: None)

    def trial(_: Path) -> None:
        raise FailedPrecondition("the guest does not boot")

    with pytest.raises(FailedPrecondition, match="does not boot"):
        build._build(replace(assembled, trial=trial), lambda _: None)
    assert store.find(assembled.images) == before
    assert not (assembled.images / OWN.version).exists()
