"""The kernels of this host from which images can be made: find, list, publish.

    <root>/<version>/vmlinux                    uncompressed, stripped, with a PVH entry
    <root>/<version>/config                     all options
    <root>/<version>/modules.builtin            what is built in, for modprobe (modules.builtin(5))
    <root>/<version>/modules.builtin.modinfo    and its names and aliases
    <root>/<version>/copyright                  of the sources
    <root>/<version>/manifest.json              what it was made of, and the digests of the others

A version's directory appears complete, by one rename, or not at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kata.errors import FailedPrecondition, InvalidArgument, NotFound
from kata.linux.atomic_file import sync_directory
from kata.osbuilder.kernel import COPYRIGHT, MODULE_LISTS, CustomKernel
from kata.osbuilder.store import BUILDING, MANIFEST, file_digest

DEFAULT_ROOT = Path("/var/lib/kata/kernels")
CONFIG = "config"
FILES = ("vmlinux", CONFIG, COPYRIGHT, *MODULE_LISTS)
#: Newer manifests are not understood.
FORMAT = 1
#: The current kernel and the one before.
KEPT = 2

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_MAX_MANIFEST = 1 << 20
_HINT = "run: kata kernel install --force"


def kernels_root() -> Path:
    """Directory of the kernels: $KATA_KERNELS, or /var/lib/kata/kernels."""
    return Path(os.environ.get("KATA_KERNELS") or DEFAULT_ROOT)


def find(root: Path, version: str) -> CustomKernel:
    """Find a kernel, and see that its files are what they were.

    Args:
        root: directory of the kernels.
        version: e.g. "6.12.118-kata1-3fd90a7be812".

    Raises:
        InvalidArgument: the version is invalid.
        NotFound: there is no such kernel.
        FailedPrecondition: it is damaged, or of a newer version of this program.
    """
    if not _VERSION.fullmatch(version):
        raise InvalidArgument(f"invalid version '{version[:64]}' of a kernel")
    directory = root / version
    if not directory.is_dir():
        raise NotFound(f"there is no kernel {version} in {root}", hint="kata kernel list shows those that there are")
    manifest = read_manifest(directory)
    for name in FILES:
        path = directory / name
        try:
            digest = file_digest(path)
        except OSError as error:
            raise FailedPrecondition(f"kernel {version} is damaged: {path}: {error.strerror}", hint=_HINT) from None
        if digest != manifest["files"][name]:
            raise FailedPrecondition(f"kernel {version} is damaged: {path} does not match its digest", hint=_HINT)
    return CustomKernel(directory, version, str(manifest["release"]), int(manifest["date"]))


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a kernel's directory.

    Raises:
        FailedPrecondition: it is not understood, or that of a newer version of this program.
    """
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            manifest = json.loads(file.read(_MAX_MANIFEST))
        form = int(manifest["format"])
        if form <= FORMAT:
            for name in FILES:
                str(manifest["files"][name])
            int(manifest["date"]), str(manifest["release"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FailedPrecondition(f"kernel {directory.name} is damaged: {path}: {error}", hint=_HINT) from None
    if form > FORMAT:
        raise FailedPrecondition(
            f"kernel {directory.name} has a manifest of format {form}; this version knows {FORMAT}",
            hint="install a newer version of this program, or build the kernel with this one",
        )
    assert isinstance(manifest, dict)
    return manifest


def versions(root: Path) -> list[str]:
    """The versions of all kernels, newest first; damaged ones as well."""
    found = [path for path in (root.iterdir() if root.is_dir() else ()) if _VERSION.fullmatch(path.name)]
    return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)]


def publish(root: Path, version: str, files: Mapping[str, Path], facts: Mapping[str, Any]) -> CustomKernel:
    """Put a kernel in its place, instead of one of that version, and remove all but the newest.

    Args:
        root: directory of the kernels, whose lock is held.
        version: of the kernel.
        files: of all `FILES`.
        facts: for the manifest: `release`, `date`, and what it was made of.

    Raises:
        OSError: it cannot be written.
    """
    staging = root / f"{BUILDING}{version}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for name, path in files.items():
        shutil.copyfile(path, staging / name)
        (staging / name).chmod(0o444)
    digests = {name: file_digest(staging / name) for name in files}
    manifest = {"format": FORMAT, "version": version, **facts, "files": digests}
    (staging / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for path in staging.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(staging)
    target = root / version
    if target.exists():
        # Images have copies, so that nobody reads it now but another build of an image, which says so.
        target.rename(root / f"{BUILDING}replaced-{version}")
    staging.rename(target)
    sync_directory(root)
    remove_all_but(root, KEPT)
    return find(root, version)


def remove_all_but(root: Path, keep: int) -> list[str]:
    """Remove kernels, and what a killed build has left behind; returns their versions. Images keep their copies.

    Args:
        root: directory of the kernels, whose lock is held.
        keep: how many of the newest stay.

    Raises:
        OSError: one cannot be removed.
    """
    old = versions(root)[keep:]
    for version in old:
        # Renamed first, so that nobody finds half a kernel.
        (root / version).rename(root / f"{BUILDING}removed-{version}")
    for path in root.glob(f"{BUILDING}*"):
        shutil.rmtree(path)
    return old
