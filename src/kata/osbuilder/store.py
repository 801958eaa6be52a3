"""The guest images of this host: find, check, list, remove.

    <root>/<version>/{vmlinux,initrd,manifest.json}
    <root>/<version>/root.erofs            or root.ext4, root.xfs; none if the initrd is the whole root
    <root>/<version>/root.erofs.verity     parameters of dm-verity, if it has a tree of hashes
    <root>/<version>/host/                 programs that the host runs, see `kata.osbuilder.host_programs`
    <root>/current -> <version>            current-arm64, … of other architectures than the host's

Where nothing was built, the image that came with the installation (`kata.installed`) is the current one.

A version's directory appears complete, by one rename, or not at all. Images are made in `kata.osbuilder.build`. Every
sandbox start imports this module, so imports for administration only are in the functions that need them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kata import installed
from kata.architecture import ALL, HOST, Architecture, named
from kata.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from kata.linux import lock as flock
from kata.linux.atomic_file import sync_directory

DEFAULT_ROOT = Path("/var/lib/kata/images")
#: What every image has; its manifest names the others.
FILES = ("vmlinux", "initrd")
#: One of these is the root, unless the initrd is.
ROOTS = ("root.erofs", "root.ext4", "root.xfs")
MANIFEST = "manifest.json"
CURRENT = HOST.current
#: Prefix of a build in progress, or of what a killed one left behind.
BUILDING = ".build-"
#: Of manifests: another number means that an older reader would misunderstand it.
FORMAT = 1

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
#: Of a file below the image's directory.
_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._+-]*/)?[A-Za-z0-9][A-Za-z0-9._+-]*")
#: What a manifest says of an image and a person reads: it may be an imported one.
_WORD = re.compile(r"[A-Za-z0-9._+:~-]{1,128}")
_MAX_MANIFEST = 1 << 20
_HINT = "run: kata image build"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """One complete image.

    Attributes:
        version: derived from its inputs; see `kata.osbuilder.inputs`.
        directory: of the files.
        kernel: uncompressed ELF kernel with a PVH entry.
        initrd: cpio archive.
        rootfs: image of the root; None if the initrd is the whole root.
        manifest: its inputs and digests; see docs/guest-image.md.
    """

    version: str
    directory: Path
    kernel: Path
    initrd: Path
    rootfs: Path | None
    manifest: dict[str, Any] = field(repr=False, compare=False)

    @property
    def form(self) -> str:
        """How its root is stored, in words."""
        root = self.manifest["root"]
        return ", ".join([root["format"], *(word for word in ("verity", "partitioned") if root.get(word))])

    @property
    def architecture(self) -> Architecture:
        """That of its guest. Raises InvalidArgument if it is none that is known."""
        return named(self.manifest["architecture"])

    @property
    def size(self) -> int:
        """Size of its files, in bytes."""
        return sum(int(file["size"]) for file in self.manifest["files"].values())


def images_root() -> Path:
    """Directory of the images: $KATA_IMAGES, or /var/lib/kata/images."""
    return Path(os.environ.get("KATA_IMAGES") or DEFAULT_ROOT)


def find(root: Path | None = None, version: str = CURRENT) -> GuestImage:
    """Find the current image, or that of a version.

    The image's directory is the version's, not the link: it stays the same when another image becomes current.

    Args:
        root: directory of the images; None for `images_root` and what came with the installation.
        version: of the image, or the name of a link to a current one.

    Raises:
        NotFound: there is no such image.
        InvalidArgument: the version is invalid.
        FailedPrecondition: the image is damaged.
    """
    root = _root_of(version) if root is None else root
    if not _VERSION.fullmatch(version):
        raise InvalidArgument(f"invalid version '{version[:64]}' of a guest image")
    for architecture in ALL:
        if version == architecture.current:
            version = _current(root, architecture)
            break
    directory = root / version
    if not directory.is_dir():
        raise NotFound(f"there is no guest image {version} in {root}", hint=_HINT)
    manifest = _read_manifest(directory)
    for name, file in manifest["files"].items():
        path = directory / name
        expected = file["size"]
        size = path.stat().st_size if path.is_file() else None
        if size != expected:
            found = "is missing" if size is None else f"has {size} bytes instead of {expected}"
            raise FailedPrecondition(f"guest image {version} is damaged: {path} {found}", hint=f"{_HINT} --force")
    kernel, initrd = (directory / name for name in FILES)
    rootfs = next((directory / name for name in ROOTS if name in manifest["files"]), None)
    return GuestImage(version, directory, kernel, initrd, rootfs, manifest)


def _current(root: Path, architecture: Architecture) -> str:
    """The version of the current image of an architecture.

    Raises:
        NotFound: there is none.
        FailedPrecondition: the link points elsewhere.
    """
    link, hint = root / architecture.current, f"run: {architecture.build_command}"
    try:
        version = os.readlink(link)
    except OSError:
        which = "" if architecture is HOST else f" for {architecture.name}"
        raise NotFound(f"there is no guest image{which} in {root}", hint=hint) from None
    if not _VERSION.fullmatch(version):
        raise FailedPrecondition(f"{link} does not point to a guest image", hint=hint)
    return version


def current_versions(root: Path) -> set[str]:
    """The versions of all images that are current, each for its architecture."""
    links = (root / architecture.current for architecture in ALL)
    return {os.readlink(link) for link in links if link.is_symlink()}


def _root_of(version: str) -> Path:
    """Where an image is: among those of this host, or else, unless the environment names them, of the installation."""
    root = images_root()
    there = os.path.lexists(root / version) or os.environ.get("KATA_IMAGES")
    return root if there or not os.path.lexists(installed.IMAGES / version) else installed.IMAGES


def check(image: GuestImage) -> None:
    """Read all files and compare them with the manifest.

    Raises:
        FailedPrecondition: a file differs from its digest.
    """
    for name, file in image.manifest["files"].items():
        path = image.directory / name
        try:
            found = file_digest(path)
        except OSError as error:
            raise FailedPrecondition(f"guest image {image.version} is damaged: {error}", hint=_HINT) from None
        if found != file["sha256"]:
            raise FailedPrecondition(
                f"guest image {image.version} is damaged: {path} does not match its digest",
                hint=f"{_HINT} --force",
            )


def list_images(root: Path | None = None) -> list[GuestImage]:
    """All usable images, newest first; damaged ones are left out.

    Args:
        root: as of `find`.
    """
    roots = [root] if root else [images_root(), *([] if os.environ.get("KATA_IMAGES") else [installed.IMAGES])]
    images: list[tuple[int, GuestImage]] = []
    for directory in (path for one in roots if one.is_dir() for path in one.iterdir()):
        if directory.is_dir() and not directory.is_symlink() and _VERSION.fullmatch(directory.name):
            # Damaged, or just being removed.
            with contextlib.suppress(FailedPrecondition, NotFound, OSError):
                images.append((directory.stat().st_mtime_ns, find(directory.parent, directory.name)))
    return [image for _, image in sorted(images, key=lambda entry: entry[0], reverse=True)]


def prune(root: Path | None = None, *, keep: int = 2) -> list[str]:
    """Remove old images and return their versions.

    The newest `keep` stay, and so do the current ones and those that a process has open or mapped.

    Raises:
        InvalidArgument: `keep` is negative.
        DeadlineExceeded: a build holds the lock.
    """
    import shutil  # loads compressors

    if keep < 0:
        raise InvalidArgument("cannot keep a negative number of images")
    root = images_root() if root is None else root
    if not root.is_dir():
        return []
    removed = []
    with lock(root, timeout=30):
        current = current_versions(root)
        candidates = [image for image in list_images(root)[keep:] if image.version not in current]
        used = _versions_in_use(candidates)
        for image in candidates:
            if image.version not in used:
                # Renamed first, so that nobody finds half an image.
                doomed = root / f"{BUILDING}removed-{image.version}"
                image.directory.rename(doomed)
                shutil.rmtree(doomed)
                removed.append(image.version)
    return removed


def switch_current(root: Path, version: str, architecture: Architecture = HOST) -> None:
    """Make a version the current one of its architecture, atomically. Raises OSError."""
    link = root / f"{BUILDING}current"
    link.unlink(missing_ok=True)
    link.symlink_to(version)
    link.replace(root / architecture.current)
    sync_directory(root)


def switch_to_installed(root: Path) -> None:
    """Have what came with the installation be the current image again. Raises OSError."""
    (root / CURRENT).unlink(missing_ok=True)
    sync_directory(root)


@contextlib.contextmanager
def lock(directory: Path, *, timeout: float, waiting: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold the lock for changes of a directory.

    Args:
        directory: which has to exist.
        timeout: seconds to wait.
        waiting: told for whom, if there is somebody to wait for.

    Raises:
        DeadlineExceeded: another process held it until the timeout.
        OSError: the lock file cannot be made.
    """
    path = directory / ".lock"
    fd = flock.acquire(path)
    if fd is None:
        waiting(f"waiting for {flock.holder(path)}, which is changing {directory}")
        fd = flock.acquire(path, timeout=timeout)
    if fd is None:
        raise DeadlineExceeded(
            f"{flock.holder(path)} has been changing {directory} for {timeout:.0f} s", hint="try again later"
        )
    try:
        yield
    finally:
        os.close(fd)


def sync_tree(directory: Path) -> None:
    """Have all files below a directory survive a power failure. Raises OSError."""
    for path in directory.iterdir():
        if path.is_dir():
            sync_tree(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_directory(directory)


def file_names(directory: Path) -> list[str]:
    """The names of all files below a directory, sorted."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    import hashlib  # loads OpenSSL

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            manifest = json.loads(file.read(_MAX_MANIFEST))
        # Those of the first images had no number.
        number = int(manifest.setdefault("format", 0))
        if number > FORMAT:
            raise FailedPrecondition(
                f"guest image {directory.name} was made by a newer kata (manifest of format {number}; "
                f"this one reads up to {FORMAT})",
                hint="install that version, or run: kata image build",
            )
        if number == 0:
            manifest["recipe"] = "default"
            manifest["root"] = {"format": "erofs", "verity": False}
        manifest.setdefault("architecture", HOST.name)
        if not _WORD.fullmatch(manifest["root"]["format"]):
            raise ValueError("invalid format of the root")
        for key in ("recipe", "architecture", "kernel_release", "date"):
            if not _WORD.fullmatch(manifest[key]):
                raise ValueError(f"invalid {key} {manifest[key]!r:.80}")
        for name in {*FILES, *manifest["files"]}:
            int(manifest["files"][name]["size"])
            str(manifest["files"][name]["sha256"])
            if not _NAME.fullmatch(name):
                raise ValueError(f"invalid name {name!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FailedPrecondition(
            f"guest image {directory.name} is damaged: {path}: {error}", hint=f"{_HINT} --force"
        ) from None
    assert isinstance(manifest, dict)
    return manifest


def _versions_in_use(images: list[GuestImage]) -> set[str]:
    owners = {}
    for image in images:
        for name in image.manifest["files"]:
            status = (image.directory / name).stat()
            owners[status.st_dev, status.st_ino] = image.version
    inodes = {inode: version for (_, inode), version in owners.items()}
    used = set()
    for process in Path("/proc").glob("[0-9]*"):
        # A process may end meanwhile.
        with contextlib.suppress(OSError):
            for link in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    status = link.stat()
                    if version := owners.get((status.st_dev, status.st_ino)):
                        used.add(version)
        with contextlib.suppress(OSError):
            for line in (process / "maps").read_text(errors="replace").splitlines():
                # address permissions offset device inode path; on some file systems the device differs from stat(2)'s.
                fields = line.split(maxsplit=5)
                version = inodes.get(int(fields[4])) if len(fields) == 6 else None
                if version and f"/{version}/" in fields[5]:
                    used.add(version)
    return used
