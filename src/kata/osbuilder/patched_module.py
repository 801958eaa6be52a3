"""The guest's 9p module, compiled anew with this project's patch; the rest of the kernel is Debian's as it is.

Without the patch, data that is appended over 9p is lost. It is compiled from the kernel's own sources, with its
configuration and by the compiler of its suite, in a root of these packages: a quarter of a minute, where a kernel takes
half an hour. What was compiled is kept in the cache, beside the intermediates; the packages are not.

Reference: the kernel's Documentation/kbuild/modules.rst.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from kata.command import run
from kata.errors import FailedPrecondition, Internal
from kata.osbuilder import rootfs, store
from kata.osbuilder.packages import Package, PackageCache

#: The patch's file, in `kata.kernel_build`, which applies it to whole kernels.
PATCH = "0001-9p-length-of-a-file-being-written.patch"

# Below the kernel's sources, and its modules.
_DIRECTORY = "fs/9p"
_MODULE = "9p.ko"

# In the root in which it is compiled. Paths in the module are the same wherever that is.
_SOURCES = Path("patched")

# In a user namespace nobody can make a device node.
_IN_ROOT = 'mount --bind /dev/null "$0/dev/null" && exec chroot "$0" "$@"'

# Named by dependencies: the kernel's own package, which the image has anyway, and what it needs on a machine that it
# boots; debugging information for BPF, which this module gets none of; what a compiler adds to programs that test
# themselves; and tools in whose place busybox is.
_UNNEEDED = (
    *("linux-image-*", "initramfs-tools*", "*systemd*", "coreutils", "libssl*", "openssl-*", "pahole"),
    "lib*san[0-9]*",
)

_COMPILE_TIMEOUT_S = 900.0
_TOOL_TIMEOUT_S = 60.0
#: For a few kernels.
_KEPT = 4


def patch() -> bytes:
    """The patch."""
    return files("kata.kernel_build").joinpath("patches", PATCH).read_bytes()


def install(root: Path, release: str, kernel: Package, cache: PackageCache, progress: Callable[[str], None]) -> None:
    """Put the patched module in the place of Debian's; compile it if the cache does not have it.

    Args:
        root: the guest's root, with the kernel's modules as they are in its package.
        release: e.g. "6.12.118+deb13-amd64".
        kernel: its package.
        cache: for packages and the module; locked.
        progress: told of each step.

    Raises:
        FailedPrecondition: the archive does not have the sources of just this kernel, or the patch does not apply.
        Unavailable: no network.
        ResourceExhausted, DeadlineExceeded, Internal, OSError: as `kata.command.run`.
    """
    module = root / rootfs.MODULES / release / "kernel" / _DIRECTORY / _MODULE
    for packed in list(module.parent.glob(f"{_MODULE}*")):
        packed.unlink()
    module.write_bytes(_module(release, kernel, cache, progress))


def _module(release: str, kernel: Package, cache: PackageCache, progress: Callable[[str], None]) -> bytes:
    kept = cache.directory / "modules"
    key = hashlib.sha256(kernel.sha256.encode() + patch() + Path(__file__).read_bytes()).hexdigest()
    entry = kept / key
    if (module := _read(entry)) is not None:
        os.utime(entry)
        return module
    staging = cache.directory / f"{store.BUILDING}module"
    root = staging / "root"
    root.mkdir(parents=True)
    packages, source = _fetch(release, kernel, cache, progress)
    progress("unpacking a compiler")
    rootfs.unpack((), [cache.path(package) for package in packages], root)
    rootfs.install_applets(root)
    progress(f"unpacking {_DIRECTORY} of the kernel's sources")
    _unpack_sources(cache.path(source), staging, root / _SOURCES)
    progress("compiling the patched 9p module")
    _compile(root, release)
    module = (root / _SOURCES / _DIRECTORY / _MODULE).read_bytes()
    made = staging / "module"
    made.mkdir()
    (made / _MODULE).write_bytes(module)
    (made / "sha256").write_text(hashlib.sha256(module).hexdigest())
    shutil.rmtree(root)
    store.sync_tree(made)
    kept.mkdir(exist_ok=True)
    shutil.rmtree(entry, ignore_errors=True)
    made.rename(entry)
    for old in sorted(kept.iterdir(), key=lambda path: path.stat().st_mtime_ns)[:-_KEPT]:
        shutil.rmtree(old)
    return module


def _read(entry: Path) -> bytes | None:
    """The module of an entry of the cache; None if it is not there as it was made."""
    try:
        module = (entry / _MODULE).read_bytes()
        whole = hashlib.sha256(module).hexdigest() == (entry / "sha256").read_text()
    except (OSError, ValueError):
        return None
    return module if whole else None


def _fetch(
    release: str, kernel: Package, cache: PackageCache, progress: Callable[[str], None]
) -> tuple[list[Package], Package]:
    """What compiles the module, and the package with the sources; all in the cache.

    Raises:
        FailedPrecondition: the archive does not have them.
        Unavailable: no network.
    """
    upstream = ".".join(kernel.version.split(".")[:2])
    try:
        packages = cache.closure([f"linux-headers-{release}", "make", "busybox-static"], leave_out=_UNNEEDED)
        (source,) = cache.named(f"linux-source-{upstream}={kernel.version}")
    except Internal as error:
        raise FailedPrecondition(
            f"apt cannot find what the 9p module of {release} is compiled from: {error}",
            hint="run: kata image build --update",
        ) from None
    if missing := cache.missing([*packages, source]):
        progress(f"downloading {len(missing)} packages ({sum(package.size for package in missing) / 1e6:.0f} MB)")
        cache.download(missing)
    return packages, source


def _unpack_sources(deb: Path, staging: Path, target: Path) -> None:
    rootfs.unpack_part(deb, staging, "./usr/src")
    (archive,) = staging.glob("usr/src/linux-source-*.tar.xz")
    found = False
    with tarfile.open(archive, "r|xz") as sources:
        for member in sources:
            path = member.name.partition("/")[2]
            if path.startswith(f"{_DIRECTORY}/") and (file := sources.extractfile(member)):
                found = True
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                (target / path).write_bytes(file.read())
            elif found:
                break  # What follows is a quarter of the whole.
    shutil.rmtree(staging / "usr")


def _compile(root: Path, release: str) -> None:
    (root / "dev").mkdir(exist_ok=True)
    (root / "dev/null").touch()
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp" / PATCH).write_bytes(patch())
    # make has children, which would outlive it.
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"]
    chroot = [*alone, "/bin/sh", "-ec", _IN_ROOT, str(root)]
    try:
        run([*chroot, "/bin/sh", "-ec", f"cd /{_SOURCES} && patch -p1 -i /tmp/{PATCH}"], timeout=_TOOL_TIMEOUT_S)
    except Internal as error:
        raise FailedPrecondition(f"{PATCH} does not apply to {release}: {error.message}") from None
    make = ["make", "-C", f"/usr/src/linux-headers-{release}", f"M=/{_SOURCES / _DIRECTORY}"]
    jobs = len(os.sched_getaffinity(0))
    run([*chroot, *make, f"-j{jobs}", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"], timeout=_COMPILE_TIMEOUT_S)
    run([*chroot, "strip", "--strip-debug", f"/{_SOURCES / _DIRECTORY / _MODULE}"], timeout=_TOOL_TIMEOUT_S)
