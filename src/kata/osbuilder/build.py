"""Build a guest image: resolve, fetch, assemble, publish.

The parts that do not depend on the agent (kernel, initrd, the root's packages) are kept as an intermediate in the
cache, so that a changed agent costs seconds. Everything is made in a hidden directory and appears by one rename.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from kata.errors import FailedPrecondition, NotFound, PermissionDenied, ResourceExhausted, Unavailable
from kata.osbuilder import (
    agent_files,
    commands,
    contents,
    formats,
    host_programs,
    initrd,
    kernel,
    licenses,
    modules,
    rootfs,
    store,
    suite,
    verity,
)
from kata.osbuilder import recipe as recipes
from kata.osbuilder.inputs import Inputs, builder_digest
from kata.osbuilder.kernel import MODULE_LISTS, CustomKernel
from kata.osbuilder.packages import PackageCache, PackageSet, build_date
from kata.osbuilder.recipe import INITRD, Form, Recipe
from kata.osbuilder.store import GuestImage

DEFAULT_CACHE = Path("/var/cache/kata")

#: Called with the next step, a short phrase.
Progress = Callable[[str], None]

_TOOLS = ("apt-cache", "apt-get", "chroot", "dpkg-deb", "ldconfig", "setpriv", "tar")
#: A whole build takes a minute; another one may be waiting for the network.
_LOCK_TIMEOUT_S = 900.0
#: Intermediates to keep, with their packages: of a few recipes.
_BASES_KEPT = 4
#: What is known of an intermediate: date, packages, digests of its files.
_BASE = "base.json"
#: The licenses of all packages, one after the other.
_COPYRIGHT = "copyright"
_DOC = "./usr/share/doc"


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What to build, and where.

    Attributes:
        images: root of the image store.
        cache: for packages and intermediates; may be deleted at any time between builds.
        mirror: address of the Debian archive.
        agent: directory of this package's sources, which the agent's parts are taken from.
        force: build everything even if that version exists, including the intermediate.
        update: update the package lists first.
        recipe: what the guest is made of.
        switch: make the image the current one.
        other: directory of a root file system, whose files the guest has as well, where it has none itself.
        kernel: instead of Debian's.
        trial: called with the directory of the finished image before others see it; what it raises ends the build.
    """

    images: Path = field(default_factory=store.images_root)
    cache: Path = DEFAULT_CACHE
    mirror: str = suite.MIRROR
    agent: Path = field(default_factory=agent_files.source_directory)
    force: bool = False
    update: bool = False
    recipe: Recipe = field(default_factory=lambda: recipes.load(recipes.DEFAULT))
    switch: bool = True
    other: Path | None = None
    kernel: CustomKernel | None = None
    trial: Callable[[Path], None] | None = None


def build(options: BuildOptions, progress: Progress = lambda _: None) -> GuestImage:
    """Build the image for the inputs, unless it exists, and make it the current one if that is wanted.

    Args:
        options: the inputs.
        progress: called with each step.

    Raises:
        PermissionDenied: not root.
        FailedPrecondition: another architecture, packages that apt cannot find, or a kernel that lacks what the initrd
            needs.
        KataError: what the trial raises.
        NotFound: a tool, a part of the agent, or a package or module of the recipe is missing.
        InvalidArgument: a file or user of the recipe is in another one's way.
        Unavailable: no network.
        ResourceExhausted: the disk is full.
        DeadlineExceeded: another build, or a tool, takes too long.
        Internal: a tool failed.
    """
    check_host(shaping_tools(options.recipe.form))
    with changing(options.images, options.cache):
        return _build(options, progress)


def build_root(options: BuildOptions, target: Path, progress: Progress = lambda _: None) -> None:
    """Make the root of an image as a directory, with the agent in it; the image store is left alone.

    Args:
        options: the inputs.
        target: the directory, which must not exist or be empty. It appears complete or not at all.
        progress: called with each step.

    Raises:
        FailedPrecondition: the directory is not empty.
        KataError: as `build`.
    """
    check_host([])
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FailedPrecondition(f"{target} is not an empty directory", hint="name another one, or remove it")
    with changing(options.cache):
        staging = target.with_name(f"{store.BUILDING}{target.name}")
        shutil.rmtree(staging, ignore_errors=True)
        try:
            cache = PackageCache(options.cache, options.mirror)
            files, inputs = _inputs(cache, options, progress)
            staging.parent.mkdir(parents=True, exist_ok=True)
            _add_agent(_base(options, cache, inputs, progress), files, staging, progress)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def changing(*directories: Path) -> Iterator[None]:
    """Hold directories in which things are made; what a killed build has left there goes first, and what is left after.

    Raises:
        DeadlineExceeded: another build takes too long.
        KataError: as `told`.
    """
    with told(directories[0]), contextlib.ExitStack() as held:
        for directory in directories:
            directory.mkdir(parents=True, exist_ok=True)
            held.enter_context(store.lock(directory, timeout=_LOCK_TIMEOUT_S))
            _remove_leftovers(directory)
            held.callback(_remove_leftovers, directory)
        yield


@contextlib.contextmanager
def told(directory: Path) -> Iterator[None]:
    """Have errors of the file system said as a build's.

    Args:
        directory: that an error is about if it names none.

    Raises:
        ResourceExhausted: the disk is full.
        FailedPrecondition: a directory cannot be used.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted(
                f"no space left on the file system of {error.filename or directory}",
                hint="free 1 GB there and build again",
            ) from None
        raise FailedPrecondition(f"cannot build a guest image: {error}") from error


def check_host(tools: Sequence[str]) -> None:
    """See that this host can build.

    Args:
        tools: needed besides those for the root.

    Raises:
        PermissionDenied: not root.
        FailedPrecondition: another architecture.
        NotFound: a tool is not installed.
    """
    if os.geteuid() != 0:
        raise PermissionDenied("only root can build a guest image", hint="run it with sudo")
    if os.uname().machine != "x86_64":
        raise FailedPrecondition(f"guest images are built for x86_64 only, not for {os.uname().machine}")
    commands.require((*_TOOLS, *tools))
    if not suite.KEYRING.exists():
        raise NotFound(f"{suite.KEYRING} is missing", hint="run: apt-get install debian-archive-keyring")


def _digest_of(other: Path | None, progress: Progress) -> str:
    """A digest of all files of another root file system, by their contents.

    Raises:
        NotFound: there is no such directory.
    """
    if other is None:
        return ""
    if not other.is_dir():
        raise NotFound(f"{other} is not a directory")
    progress("reading the other root file system")
    return hashlib.sha256(contents.dump(contents.collect(other)).encode()).hexdigest()


def shaping_tools(form: Form) -> list[str]:
    """The host's tools whose version shapes the bytes of an image."""
    file_system = formats.FILE_SYSTEMS.get(form.format)
    return [*([file_system.tool] if file_system else []), *([verity.TOOL] if form.verity else [])]


def _inputs(cache: PackageCache, options: BuildOptions, progress: Progress) -> tuple[Mapping[str, bytes], Inputs]:
    """The agent's files, and all inputs with the packages in the cache."""
    files = agent_files.collect(options.agent)
    packages = _resolve(cache, options, progress)
    agent = agent_files.digest(files)
    tools = commands.digests(*shaping_tools(options.recipe.form))
    other = _digest_of(options.other, progress)
    return files, Inputs(packages, options.recipe, agent, builder_digest(), tools, other, options.kernel)


def _add_agent(base: Path, files: Mapping[str, bytes], root: Path, progress: Progress) -> None:
    """Make a root of an intermediate and the agent."""
    progress("installing the agent")
    rootfs.unpack_archive(base / "root.tar", root)
    agent_files.install(files, root)
    rootfs.compile_python(root, "/usr/lib/kata")
    progress("checking the agent")
    rootfs.check(root)


def _build(options: BuildOptions, progress: Progress) -> GuestImage:
    cache = PackageCache(options.cache, options.mirror)
    form = options.recipe.form
    files, inputs = _inputs(cache, options, progress)

    if not options.force:
        try:
            image = store.find(options.images, inputs.version)
        except (FailedPrecondition, NotFound):
            pass
        else:
            progress(f"image {image.version} is up to date")
            if options.switch:
                store.switch_current(options.images, image.version)
            return image

    base = _base(options, cache, inputs, progress)
    staging = options.images / f"{store.BUILDING}{inputs.version}"
    staging.mkdir()
    root = staging / "root"
    _add_agent(base, files, root, progress)
    (staging / contents.NAME).write_text(contents.dump(contents.collect(root)))
    progress("writing the root image")
    information = json.loads((base / _BASE).read_text())
    write_root(root, staging / _root_name(form), form, information["date"], inputs.uuid)
    shutil.rmtree(root)
    for name in ("vmlinux", _COPYRIGHT, *(() if form.format == INITRD else ("initrd",))):
        shutil.copyfile(base / name, staging / name)
    shutil.copytree(base / host_programs.DIRECTORY, staging / host_programs.DIRECTORY)
    _write_manifest(staging, inputs, information["date"], information["licenses"])
    if options.trial:
        progress("booting it for a trial")
        options.trial(staging)
    return _publish(options.images, staging, inputs.version, progress, switch=options.switch)


def write_root(root: Path, target: Path, form: Form, date: int, uuid: str) -> None:
    """Write a root as an image, with what dm-verity needs beside it, or as an initrd.

    Args:
        root: the directory.
        target: the file.
        form: which of them.
        date: of all files, in seconds since 1970.
        uuid: of the file system.

    Raises:
        Internal, DeadlineExceeded, OSError: as `kata.command.run`.
    """
    if form.format == INITRD:
        target.write_bytes(initrd.build_alone(root))
        return
    formats.FILE_SYSTEMS[form.format].write(root, target, form, date, uuid)
    if form.verity:
        sealed = verity.seal(target, salt=UUID(uuid).hex)
        target.with_name(f"{target.name}{verity.SUFFIX}").write_text(f"{sealed.text}\n")


def _root_name(form: Form) -> str:
    return "initrd" if form.format == INITRD else f"root.{form.format}"


def _resolve(cache: PackageCache, options: BuildOptions, progress: Progress) -> PackageSet:
    """The packages, all of them in the cache.

    Raises:
        FailedPrecondition: apt cannot find a package, even with updated lists.
        Unavailable: no network.
    """
    if options.update:
        progress("updating the package lists")
        cache.update()
    try:
        return _fetch(cache, options.recipe, progress)
    except (FailedPrecondition, Unavailable):
        # No lists yet, or outdated ones, with files that the archive has replaced.
        if options.update:
            raise
        progress("updating the package lists")
        cache.update()
        return _fetch(cache, options.recipe, progress)


def _fetch(cache: PackageCache, recipe: Recipe, progress: Progress) -> PackageSet:
    progress("choosing packages")
    packages = cache.resolve(recipe.packages, (verity.PACKAGE,) if recipe.form.verity else ())
    if missing := cache.missing(packages):
        progress(f"downloading {len(missing)} packages ({sum(package.size for package in missing) / 1e6:.0f} MB)")
        cache.download(missing)
    return packages


def _base(options: BuildOptions, cache: PackageCache, inputs: Inputs, progress: Progress) -> Path:
    """The intermediate's directory: vmlinux, initrd, root.tar, what is known of them, and the programs for the host."""
    bases = options.cache / "base"
    base = bases / inputs.base_key
    if not options.force and _is_whole(base):
        os.utime(base)
        _forget_unused(bases, cache)
        return base
    staging = options.cache / f"{store.BUILDING}base"
    root = staging / "root"
    parts = staging / "parts"
    root.mkdir(parents=True)
    parts.mkdir()

    progress("unpacking packages")
    extra = inputs.packages.extra
    trimmed = [package for package in inputs.packages.userland if package not in extra]
    rootfs.unpack([cache.path(package) for package in trimmed], [cache.path(package) for package in extra], root)
    rootfs.configure(root, inputs.recipe, options.other)
    first = modules_of_initrd(inputs.recipe.form)
    tree = _kernel(root, parts, cache, inputs, (*inputs.recipe.modules, *first), progress)
    directory = root / rootfs.MODULES / inputs.release
    if first:
        loaded = [(path, (directory / path).read_bytes()) for path in tree.load_order(first)]
        (staging / "initrd").write_bytes(_initrd(root, loaded, staging, inputs, cache))
    progress("collecting licenses")
    for package in inputs.packages:
        if not (parts / _DOC / package.name).exists():
            rootfs.unpack_part(cache.path(package), parts, _DOC)
    texts = _copyrights(parts / _DOC, [package.name for package in inputs.packages])
    (staging / _COPYRIGHT).write_text("\n".join(f"==== {name} ====\n{text}" for name, text in texts.items()))
    shutil.rmtree(parts)
    progress("compiling the Python library")
    rootfs.compile_python(root, rootfs.python_library(root), "/usr/lib/python3/dist-packages")
    rootfs.pack(root, staging / "root.tar")
    shutil.rmtree(root)
    progress("unpacking the programs for the host")
    host_programs.install([cache.path(package) for package in inputs.packages.host], staging / host_programs.DIRECTORY)
    date = max(build_date(cache.path(package)) for package in inputs.packages)
    if inputs.kernel:
        date = max(date, inputs.kernel.date)
    debs = [package.filename for package in inputs.packages]
    digests = {name: store.file_digest(staging / name) for name in _files(staging)}
    names = {name: licenses.names(text) for name, text in texts.items()}
    (staging / _BASE).write_text(json.dumps({"date": date, "debs": debs, "files": digests, "licenses": names}))

    bases.mkdir(exist_ok=True)
    store.sync_tree(staging)
    if base.exists():
        shutil.rmtree(base)
    staging.rename(base)
    _forget_unused(bases, cache)
    return base


def _kernel(
    root: Path, parts: Path, cache: PackageCache, inputs: Inputs, wanted: Sequence[str], progress: Progress
) -> modules.ModuleTree:
    """Write vmlinux beside the root, and put those modules into it that are wanted; returns which there are.

    Args:
        root: the root.
        parts: a directory for parts of packages.
        cache: has the packages.
        inputs: of the image.
        wanted: patterns of modules, as `rootfs.trim_modules` takes them.
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
        return rootfs.index_modules(root, release)
    progress("unpacking the kernel")
    deb = cache.path(inputs.packages.kernel)
    rootfs.unpack_part(deb, parts, "./boot", _DOC)
    rootfs.unpack_part(deb, root, f"./{rootfs.MODULES}")
    progress("choosing kernel modules")
    tree = rootfs.trim_modules(rootfs.index_modules(root, release), root, release, wanted)
    progress("extracting the kernel")
    target.write_bytes(kernel.extract_vmlinux((parts / f"boot/vmlinuz-{release}").read_bytes()))
    return tree


def modules_of_initrd(form: Form) -> tuple[str, ...]:
    """The kernel modules that mount a root of this form, in the order in which they are loaded; none without a disk."""
    if form.format == INITRD:
        return ()
    return modules.of_initrd([*formats.FILE_SYSTEMS[form.format].modules, *(verity.MODULES if form.verity else ())])


def _initrd(
    root: Path, loaded: Sequence[tuple[str, bytes]], staging: Path, inputs: Inputs, cache: PackageCache
) -> bytes:
    """The initrd that mounts the root disk."""
    form = inputs.recipe.form
    programs = {}
    if form.verity:
        programs = verity.programs([cache.path(package) for package in inputs.packages.early], staging / "early")
        shutil.rmtree(staging / "early")
    return initrd.build((root / "usr/bin/busybox").read_bytes(), loaded, root_type=form.format, programs=programs)


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


def _write_manifest(staging: Path, inputs: Inputs, date: int, licenses: Mapping[str, Sequence[str]]) -> None:
    packages = [
        {
            "name": package.name,
            "version": package.version,
            "sha256": package.sha256,
            "licenses": list(licenses.get(package.name, ())),
        }
        for package in inputs.packages
    ]
    manifest = {
        "format": store.FORMAT,
        "version": inputs.version,
        "recipe": inputs.recipe.name,
        "root": {"format": inputs.recipe.form.format, "verity": inputs.recipe.form.verity},
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(date)),
        "kernel_release": inputs.release,
        **({"kernel": inputs.kernel.version} if inputs.kernel else {}),
        "inputs": {
            "agent": inputs.agent,
            "builder": inputs.builder,
            "other": inputs.other,
            "recipe": inputs.recipe.digest,
            "tools": dict(inputs.tools),
        },
        "files": {
            name: {"size": (staging / name).stat().st_size, "sha256": store.file_digest(staging / name)}
            for name in _files(staging)
        },
        "packages": packages,
    }
    (staging / store.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _files(directory: Path) -> list[str]:
    """The names of all files below a directory, sorted."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def _publish(images: Path, staging: Path, version: str, progress: Progress, *, switch: bool = True) -> GuestImage:
    names = _files(staging)
    for name in names:
        (staging / name).chmod(0o555 if os.access(staging / name, os.X_OK) else 0o444)
    staging.chmod(0o755)
    store.sync_tree(staging)
    target = images / version
    if target.exists():
        # The same version has the same bytes: this replaces damaged files only, and readers keep what they opened.
        for name in names:
            (target / name).parent.mkdir(exist_ok=True)
            (staging / name).replace(target / name)
        store.sync_tree(target)
    else:
        staging.rename(target)
    if switch:
        store.switch_current(images, version)
    progress(f"image {version} is ready")
    return store.find(images, version)


def _remove_leftovers(directory: Path) -> None:
    for path in directory.glob(f"{store.BUILDING}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
