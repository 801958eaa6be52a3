"""Build a guest image: resolve, fetch, assemble, publish.

Everything is made in a hidden directory and appears by one rename.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kata.architecture import HOST, Architecture
from kata.errors import FailedPrecondition, NotFound, PermissionDenied, ResourceExhausted, Unavailable
from kata.osbuilder import (
    agent_files,
    commands,
    contents,
    host_programs,
    intermediate,
    patched_module,
    rootfs,
    store,
    suite,
    verity,
)
from kata.osbuilder import recipe as recipes
from kata.osbuilder.commands import Progress
from kata.osbuilder.inputs import Inputs, builder_digest
from kata.osbuilder.intermediate import Intermediate
from kata.osbuilder.kernel import CustomKernel
from kata.osbuilder.packages import PackageCache, PackageSet
from kata.osbuilder.recipe import INITRD, Recipe
from kata.osbuilder.root_image import packages_of_tools, root_name, tools_of_host, write_root
from kata.osbuilder.store import GuestImage

DEFAULT_CACHE = Path("/var/cache/kata")

_TOOLS = ("apt-cache", "apt-get", "chroot", "dpkg-deb", "setpriv", "tar")
#: A whole build takes a minute; another one may be waiting for the network.
_LOCK_TIMEOUT_S = 900.0


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
        architecture: of the guest.
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
    architecture: Architecture = HOST
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
    check_host(tools_of_host(options.recipe.form))
    with changing(options.images, options.cache, waiting=progress):
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
    with changing(options.cache, waiting=progress):
        staging = target.with_name(f"{store.BUILDING}{target.name}")
        shutil.rmtree(staging, ignore_errors=True)
        try:
            cache = _cache(options)
            files, inputs = _inputs(cache, options, progress)
            staging.parent.mkdir(parents=True, exist_ok=True)
            _add_agent(_base(options, cache, inputs, progress), files, staging, inputs.architecture, progress)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def changing(*directories: Path, waiting: Progress = lambda _: None) -> Iterator[None]:
    """Hold directories in which things are made; what a killed build has left there goes first, and what is left after.

    Meanwhile new files have the usual permissions, whatever this process's mask is: they are part of an image.

    Args:
        *directories: which are made if they are not there.
        waiting: told for whom, if another build holds one.

    Raises:
        DeadlineExceeded: another build takes too long.
        KataError: as `told`.
    """
    with told(directories[0]), contextlib.ExitStack() as held:
        held.callback(os.umask, os.umask(0o022))
        for directory in directories:
            directory.mkdir(parents=True, exist_ok=True)
            held.enter_context(store.lock(directory, timeout=_LOCK_TIMEOUT_S, waiting=waiting))
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
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
            raise FailedPrecondition(
                f"{error.filename} cannot be written: {(error.strerror or '').lower()}",
                hint="name other directories with --root and --cache",
            ) from None
        raise FailedPrecondition(f"cannot build a guest image: {error}") from error


def check_host(tools: Sequence[str]) -> None:
    """See that this host can build.

    Args:
        tools: needed besides those for the root.

    Raises:
        PermissionDenied: not root.
        FailedPrecondition: the host is of another architecture.
        NotFound: a tool is not installed.
    """
    if os.geteuid() != 0:
        raise PermissionDenied("only root can build a guest image", hint="run it with sudo")
    if os.uname().machine != HOST.machine:
        raise FailedPrecondition(f"guest images are built on {HOST.machine} only, not on {os.uname().machine}")
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


def _inputs(cache: PackageCache, options: BuildOptions, progress: Progress) -> tuple[Mapping[str, bytes], Inputs]:
    """The agent's files, and all inputs with the packages in the cache."""
    files = agent_files.collect(options.agent)
    packages = _resolve(cache, options, progress)
    agent = agent_files.digest(files)
    other = _digest_of(options.other, progress)
    builder, architecture = builder_digest(), options.architecture
    return files, Inputs(packages, options.recipe, agent, builder, other, options.kernel, architecture)


def _cache(options: BuildOptions) -> PackageCache:
    return PackageCache(options.cache, options.mirror, architecture=options.architecture)


def _base(options: BuildOptions, cache: PackageCache, inputs: Inputs, progress: Progress) -> Intermediate:
    return intermediate.get(options.cache, cache, inputs, progress, other=options.other, force=options.force)


def _add_agent(
    base: Intermediate, files: Mapping[str, bytes], root: Path, architecture: Architecture, progress: Progress
) -> None:
    """Make a root of an intermediate and the agent."""
    progress("installing the agent")
    rootfs.unpack_archive(base.directory / "root.tar", root)
    agent_files.install(files, root)
    rootfs.compile_python(root, "/usr/lib/kata", emulator=base.emulator)
    progress("checking the agent")
    rootfs.check(root, architecture, base.emulator)


def _build(options: BuildOptions, progress: Progress) -> GuestImage:
    cache = _cache(options)
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
                store.switch_current(options.images, image.version, image.architecture)
            return image

    base = _base(options, cache, inputs, progress)
    staging = options.images / f"{store.BUILDING}{inputs.version}"
    staging.mkdir()
    root = staging / "root"
    _add_agent(base, files, root, options.architecture, progress)
    (staging / contents.NAME).write_text(contents.dump(contents.collect(root)))
    progress("writing the root image")
    write_root(root, staging / root_name(form), form, base.date, inputs.uuid, base.directory / intermediate.TOOLS)
    shutil.rmtree(root)
    for name in ("vmlinux", intermediate.COPYRIGHT, *(() if form.format == INITRD else ("initrd",))):
        shutil.copyfile(base.directory / name, staging / name)
    shutil.copytree(base.directory / host_programs.DIRECTORY, staging / host_programs.DIRECTORY)
    _write_manifest(staging, inputs, base.date, base.licenses)
    if options.trial:
        progress("booting it for a trial")
        options.trial(staging)
    return _publish(options.images, staging, inputs.version, progress, switch=options.switch)


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
        return _fetch(cache, options, progress)
    except (FailedPrecondition, Unavailable):
        # No lists yet, or outdated ones, with files that the archive has replaced.
        if options.update:
            raise
        progress("updating the package lists")
        cache.update()
        return _fetch(cache, options, progress)


def _fetch(cache: PackageCache, options: BuildOptions, progress: Progress) -> PackageSet:
    progress("choosing packages")
    recipe = options.recipe
    early = (verity.PACKAGE,) if recipe.form.verity else ()
    packages = cache.resolve(recipe.packages, early, packages_of_tools(recipe.form), kernel=options.kernel is None)
    if missing := cache.missing(packages.needed):
        progress(f"downloading {len(missing)} packages ({sum(package.size for package in missing) / 1e6:.0f} MB)")
        cache.download(missing)
    return packages


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
        "architecture": inputs.architecture.name,
        "root": {name: getattr(inputs.recipe.form, name) for name in ("format", "verity", "partitioned")},
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(date)),
        "kernel_release": inputs.release,
        **({"kernel": inputs.kernel.version} if inputs.kernel else {"patches": [patched_module.PATCH]}),
        "inputs": {
            "agent": inputs.agent,
            "builder": inputs.builder,
            "other": inputs.other,
            "recipe": inputs.recipe.digest,
            "tools": {package.name: package.sha256 for package in inputs.packages.tools},
        },
        "files": {
            name: {"size": (staging / name).stat().st_size, "sha256": store.file_digest(staging / name)}
            for name in store.file_names(staging)
        },
        "packages": packages,
    }
    (staging / store.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _publish(images: Path, staging: Path, version: str, progress: Progress, *, switch: bool = True) -> GuestImage:
    names = store.file_names(staging)
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
    image = store.find(images, version)
    if switch:
        store.switch_current(images, version, image.architecture)
    progress(f"image {version} is ready")
    return image


def _remove_leftovers(directory: Path) -> None:
    for path in directory.glob(f"{store.BUILDING}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
