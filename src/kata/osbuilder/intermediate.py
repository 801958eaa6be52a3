"""The intermediate: all of an image that does not depend on the agent, kept in the cache.

These are kernel, initrd, the root's packages with what the recipe adds, and the programs for the host. So a changed
agent costs seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kata.architecture import HOST
from kata.osbuilder import (
    host_programs,
    initrd,
    kernel,
    licenses,
    modules,
    patched_module,
    root_image,
    rootfs,
    store,
    verity,
)
from kata.osbuilder.commands import Progress
from kata.osbuilder.inputs import Inputs
from kata.osbuilder.kernel import MODULE_LISTS
from kata.osbuilder.packages import PackageCache, build_date

#: The licenses of all packages, one after the other.
COPYRIGHT = "copyright"
#: The programs that write the image.
TOOLS = "tools"
#: Intermediates to keep, with their packages: of a few recipes.
_BASES_KEPT = 4
#: What runs the root's programs here, if they are for another architecture.
_EMULATOR = "emulator"
#: What is known of an intermediate: date, packages, digests of its files.
_BASE = "base.json"
_DOC = "./usr/share/doc"
_LDCONFIG = {"ldconfig": "usr/sbin/ldconfig"}


@dataclass(frozen=True, slots=True)
class Intermediate:
    """A complete one.

    Attributes:
        directory: has vmlinux, initrd, root.tar, COPYRIGHT, the programs for the host, and TOOLS.
        date: of its newest part, in seconds since 1970.
        licenses: names of those of each package.
        emulator: what runs the root's programs here, if they are for another architecture.
    """

    directory: Path
    date: int
    licenses: Mapping[str, Sequence[str]]
    emulator: Path | None = None


def get(
    directory: Path,
    cache: PackageCache,
    inputs: Inputs,
    progress: Progress,
    *,
    other: Path | None = None,
    force: bool = False,
) -> Intermediate:
    """The intermediate of an image, made anew unless it is there as it was made.

    Args:
        directory: the cache's, which is locked.
        cache: has the packages.
        inputs: of the image.
        progress: told of each step.
        other: directory of another root file system, see `rootfs.fill`.
        force: make it anew in any case.

    Raises:
        KataError, OSError: as `kata.osbuilder.build.build`.
    """
    bases = directory / "base"
    base = bases / inputs.base_key
    if not force and _is_whole(base):
        os.utime(base)
        _forget_unused(bases, cache)
        return _read(base)
    staging = directory / f"{store.BUILDING}base"
    _make(staging, cache, inputs, progress, other)
    bases.mkdir(exist_ok=True)
    store.sync_tree(staging)
    if base.exists():
        shutil.rmtree(base)
    staging.rename(base)
    _forget_unused(bases, cache)
    return _read(base)


def _make(staging: Path, cache: PackageCache, inputs: Inputs, progress: Progress, other: Path | None) -> None:
    """Make an intermediate in a new directory; the other arguments are those of `get`."""
    root = staging / "root"
    parts = staging / "parts"
    root.mkdir(parents=True)
    parts.mkdir()
    emulator = _unpack_emulator(staging, cache, inputs)
    progress("unpacking packages")
    extra = inputs.packages.extra
    trimmed = [package for package in inputs.packages.userland if package not in extra]
    rootfs.unpack([cache.path(package) for package in trimmed], [cache.path(package) for package in extra], root)
    tools = {**_LDCONFIG, **root_image.tools(inputs.recipe.form)}
    host_programs.install([cache.path(package) for package in inputs.packages.tools], staging / TOOLS, tools)
    ldconfig = staging / TOOLS / "ldconfig"
    rootfs.configure(root, inputs.recipe, ldconfig, other, inputs.architecture, emulator)
    first = root_image.modules_of_initrd(inputs.recipe.form)
    wanted = [name for name in inputs.recipe.modules if name not in inputs.architecture.lacking]
    tree = _kernel(root, parts, cache, inputs, (*wanted, *first), emulator, progress)
    if first:
        directory = root / rootfs.MODULES / inputs.release
        loaded = [(path, (directory / path).read_bytes()) for path in tree.load_order(first)]
        (staging / "initrd").write_bytes(_initrd(root, loaded, staging, inputs, emulator, cache))
    progress("collecting licenses")
    texts = _license_texts(parts, cache, inputs)
    (staging / COPYRIGHT).write_text("\n".join(f"==== {name} ====\n{text}" for name, text in texts.items()))
    shutil.rmtree(parts)
    progress("compiling the Python library")
    rootfs.compile_python(root, rootfs.python_library(root), "/usr/lib/python3/dist-packages", emulator=emulator)
    rootfs.pack(root, staging / "root.tar")
    shutil.rmtree(root)
    progress("unpacking the programs for the host")
    programs = staging / host_programs.DIRECTORY
    host_programs.install([cache.path(one) for one in inputs.packages.host], programs, host_programs.PROGRAMS)
    host_programs.check(programs)
    date = max(build_date(cache.path(package)) for package in inputs.packages)
    if inputs.kernel:
        date = max(date, inputs.kernel.date)
    debs = [package.filename for package in inputs.packages.needed]
    digests = {name: store.file_digest(staging / name) for name in store.file_names(staging)}
    names = {name: licenses.names(text) for name, text in texts.items()}
    (staging / _BASE).write_text(json.dumps({"date": date, "debs": debs, "files": digests, "licenses": names}))


def _license_texts(parts: Path, cache: PackageCache, inputs: Inputs) -> dict[str, str]:
    """What each package says of its license, by its name; `parts` has some packages' documents already."""
    for package in inputs.packages:
        if not (parts / _DOC / package.name).exists():
            rootfs.unpack_part(cache.path(package), parts, _DOC)
    texts = _copyrights(parts / _DOC, [package.name for package in inputs.packages])
    if inputs.kernel:
        texts[f"linux {inputs.kernel.version}"] = inputs.kernel.copyright
    return texts


def _read(base: Path) -> Intermediate:
    known = json.loads((base / _BASE).read_text())
    emulator = base / _EMULATOR
    return Intermediate(base, known["date"], known["licenses"], emulator if emulator.exists() else None)


def _unpack_emulator(staging: Path, cache: PackageCache, inputs: Inputs) -> Path | None:
    for package in inputs.packages.emulator:
        program = f"usr/bin/qemu-{inputs.architecture.machine}"
        rootfs.unpack_part(cache.path(package), staging, f"./{program}")
        (staging / program).rename(staging / _EMULATOR)
        shutil.rmtree(staging / "usr")
        return staging / _EMULATOR
    return None


def _kernel(
    root: Path,
    parts: Path,
    cache: PackageCache,
    inputs: Inputs,
    wanted: Sequence[str],
    emulator: Path | None,
    progress: Progress,
) -> modules.ModuleTree:
    """Write vmlinux beside the root, and put those modules into it that are wanted; returns which there are.

    Args:
        root: the root.
        parts: a directory for parts of packages.
        cache: has the packages.
        inputs: of the image.
        wanted: patterns of modules, as `rootfs.trim_modules` takes them.
        emulator: see `commands.run_in`.
        progress: told of each step.
    """
    release, target = inputs.release, root.with_name("vmlinux")
    if inputs.kernel:
        # All of it is built in: modprobe is told so.
        shutil.copyfile(inputs.kernel.vmlinux, target)
        directory = root / rootfs.MODULES / release
        directory.mkdir(parents=True)
        for name in MODULE_LISTS:
            shutil.copyfile(inputs.kernel.directory / name, directory / name)
        tree = rootfs.index_modules(root, release)
        if lacking := tree.lacking(wanted):
            progress(f"what this kernel lacks of the recipe's modules: {', '.join(lacking)}")
        return tree
    progress("unpacking the kernel")
    assert inputs.packages.kernel
    deb = cache.path(inputs.packages.kernel)
    rootfs.unpack_part(deb, parts, "./boot", _DOC)
    rootfs.unpack_part(deb, root, f"./{rootfs.MODULES}")
    if inputs.architecture is HOST:
        patched_module.install(root, release, inputs.packages.kernel, cache, progress)
    progress("choosing kernel modules")
    tree = rootfs.trim_modules(rootfs.index_modules(root, release, emulator), root, release, wanted, emulator)
    progress("extracting the kernel")
    content = (parts / f"boot/vmlinuz-{release}").read_bytes()
    target.write_bytes(kernel.uncompressed(content, inputs.architecture))
    return tree


def _initrd(
    root: Path,
    loaded: Sequence[tuple[str, bytes]],
    staging: Path,
    inputs: Inputs,
    emulator: Path | None,
    cache: PackageCache,
) -> bytes:
    """The initrd that mounts the root disk."""
    form = inputs.recipe.form
    programs = {}
    if form.verity:
        early = [cache.path(package) for package in inputs.packages.early]
        programs = verity.programs(early, staging / "early", inputs.architecture, emulator)
        shutil.rmtree(staging / "early")
    busybox, disk = (root / "usr/bin/busybox").read_bytes(), root_image.disk(form)
    return initrd.build(busybox, loaded, root_type=form.format, disk=disk, programs=programs)


def _copyrights(documentation: Path, packages: Iterable[str]) -> dict[str, str]:
    """The copyright file of each package that has one; some share that of another package by a symbolic link."""
    found = {}
    for name in packages:
        directory = documentation / name
        # No further than to the next directory: a package does not get to name a file of the host.
        if directory.is_symlink():
            directory = documentation / Path(os.readlink(directory)).name
        path = directory / "copyright"
        if path.is_file() and not path.is_symlink():
            found[name] = path.read_text(errors="replace")
    return found


def _is_whole(base: Path) -> bool:
    """Whether an intermediate is there with the content that it was made with."""
    try:
        files = json.loads((base / _BASE).read_text())["files"]
        return all(store.file_digest(base / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _forget_unused(bases: Path, cache: PackageCache) -> None:
    """Remove intermediates that have not been used for long, and packages that none of the others is made of."""
    by_age = sorted(bases.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for old in by_age[_BASES_KEPT:]:
        shutil.rmtree(old)
    kept: set[str] = set()
    for base in by_age[:_BASES_KEPT]:
        # A damaged one is made anew when it is wanted.
        with contextlib.suppress(OSError, ValueError, KeyError):
            kept.update(json.loads((base / _BASE).read_text())["debs"])
    cache.forget_others(kept)
