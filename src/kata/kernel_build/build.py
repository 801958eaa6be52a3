"""Build a kernel: fetch and patch the sources, configure, compile, install.

    <cache>/apt, <cache>/debs     as for the guest's other packages (`kata.osbuilder.packages`)
    <cache>/tree                  the sources with the patches
    <cache>/objects-<key>         what is made of them
    <cache>/ccache                of ccache(1), if it is installed: other options, patches and sources compile only what
                                  they touch, for which the sources are always in the same place

Each step does what is missing only. A tree appears by one rename. A directory of objects whose build was killed is
marked and made anew, because a compiler that was killed may have left half a file that looks finished to make.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from kata.command import PATH, run
from kata.errors import FailedPrecondition, Internal, NotFound, ResourceExhausted, Unavailable
from kata.kernel_build import fragments, options, plan, store
from kata.kernel_build.compile import compile_
from kata.kernel_build.plan import Inputs
from kata.kernel_build.requirements import requirements
from kata.osbuilder import suite
from kata.osbuilder.build import DEFAULT_CACHE
from kata.osbuilder.commands import Progress, pipe
from kata.osbuilder.kernel import COPYRIGHT, MODULE_LISTS, CustomKernel, has_pvh_entry
from kata.osbuilder.packages import Package, PackageCache, build_date
from kata.osbuilder.rootfs import unpack_part
from kata.osbuilder.store import BUILDING, lock

_Result = TypeVar("_Result")

#: Of the cache that images are built with.
DIRECTORY = "kernel"

#: Below this, nothing is begun: 0.2 GB of package, 1.6 of sources, 0.7 of objects.
_SPACE = 3 << 30
_UNPACK_TIMEOUT_S = 1800.0
_CONFIGURE_TIMEOUT_S = 900.0
#: A loaded host with two CPUs takes half an hour.
_COMPILE_TIMEOUT_S = 4 * 3600.0
_TOOL_TIMEOUT_S = 300.0
_LOCK_TIMEOUT_S = _COMPILE_TIMEOUT_S
#: How many files are made between two reports.
_STEPS_PER_REPORT = 100

_TREE = "tree"
#: In the sources: their key.
_TREE_KEY = ".kata-key"
#: In a directory of objects while make runs.
_UNFINISHED = ".unfinished"
_LOG = "build.log"
#: Of the options that a message names.
_MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What to build, and where.

    Attributes:
        kernels: root of the kernels of this host.
        cache: may be deleted at any time between builds.
        mirror: address of the Debian archive.
        config: a whole configuration to take instead of the project's fragments.
        own_fragments: added to the project's, each of which may change what was set before it.
        own_patches: directory of patches that follow the project's.
        jobs: how many compilers at a time.
        force: build everything even if that version exists.
        update: update the package lists first.
    """

    kernels: Path = field(default_factory=store.kernels_root)
    cache: Path = DEFAULT_CACHE / DIRECTORY
    mirror: str = suite.MIRROR
    config: Path | None = None
    own_fragments: tuple[Path, ...] = ()
    own_patches: Path | None = None
    jobs: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    force: bool = False
    update: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """Sources that are patched and configured.

    Attributes:
        inputs: all that decides what the kernel is.
        tree: the sources.
        objects: what is made of them; has `.config`.
    """

    inputs: Inputs
    tree: Path
    objects: Path

    @property
    def vmlinux(self) -> Path:
        """The kernel, stripped, once it is built."""
        return self.objects / "vmlinux.stripped"

    @property
    def config(self) -> Path:
        """All its options."""
        return self.objects / ".config"


def setup(build_options: BuildOptions, progress: Progress = lambda _: None) -> Prepared:
    """Fetch, patch and configure the sources.

    Raises:
        NotFound: a tool, or a file of the user's, does not exist.
        InvalidArgument: a fragment or patch of the user's is not understood.
        FailedPrecondition: a patch does not apply, or the configuration lacks what a guest needs.
        Unavailable: no network.
        ResourceExhausted: the disk is full.
        DeadlineExceeded: another build, or a tool, takes too long.
        Internal: a tool failed.
    """
    return _locked(build_options, progress, lambda: _setup(build_options, progress))


def build(build_options: BuildOptions, progress: Progress = lambda _: None) -> Prepared:
    """Compile the kernel, after `setup`. Raises as that does."""
    return _locked(build_options, progress, lambda: _compile(build_options, _setup(build_options, progress), progress))


def install(build_options: BuildOptions, progress: Progress = lambda _: None) -> CustomKernel:
    """Put the kernel where images are made with it, after `build`, unless it is there. Raises as that does."""
    return _locked(build_options, progress, lambda: _install(build_options, progress))


def _locked(build_options: BuildOptions, progress: Progress, action: Callable[[], _Result]) -> _Result:
    """Do something while nobody else changes the cache.

    Raises:
        ResourceExhausted: the disk is full.
        FailedPrecondition: the disk has another error, or this is another architecture.
    """
    cache = build_options.cache
    _check_host()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with lock(cache, timeout=_LOCK_TIMEOUT_S, waiting=progress):
            try:
                return action()
            finally:
                for left in cache.glob(f"{BUILDING}*"):
                    shutil.rmtree(left)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhausted(
                f"no space left on the file system of {error.filename or cache}",
                hint=f"free {_SPACE >> 30} GB there and build again",
            ) from None
        raise FailedPrecondition(f"cannot build a kernel: {error}") from error


def _check_host() -> None:
    if os.uname().machine != "x86_64":
        raise FailedPrecondition(f"kernels are built for x86_64 only, not for {os.uname().machine}")
    programs = [name for name in plan.TOOLS if shutil.which(name, path=PATH) is None]
    headers = [path for path in plan.HEADERS if not Path(path).exists()]
    if packages := plan.missing_packages(programs, headers):
        raise NotFound(
            f"building a kernel needs {', '.join([*programs, *headers])}, which this host does not have",
            hint=f"run: apt-get install {' '.join(packages)}",
        )
    if not suite.KEYRING.exists():
        raise NotFound(f"{suite.KEYRING} is missing", hint="run: apt-get install debian-archive-keyring")


@dataclass(frozen=True, slots=True)
class _Sources:
    """The package with the sources, its file, and what a kernel of it is made of."""

    package: Package
    deb: Path
    inputs: Inputs


def _sources(build_options: BuildOptions, progress: Progress) -> _Sources:
    """The sources that the suite has now, in the cache."""
    cache = PackageCache(build_options.cache, build_options.mirror)
    package = None
    if not build_options.update:
        try:
            package = _fetch(build_options, cache, progress)
        except (FailedPrecondition, Unavailable):
            pass  # no lists yet, or outdated ones, with a file that the archive has replaced
    if package is None:
        progress("updating the package lists")
        cache.update()
        package = _fetch(build_options, cache, progress)
    own, whole = build_options.own_fragments, build_options.config
    deb = cache.path(package)
    inputs = Inputs(
        source=package.sha256,
        package=package.version,
        date=build_date(deb),
        patches=fragments.patches(build_options.own_patches),
        options=fragments.options(own) if whole is None else fragments.whole(whole, own),
        config_version=fragments.config_version(),
        compiler=run(["gcc", "--version"], timeout=_TOOL_TIMEOUT_S).partition("\n")[0],
    )
    return _Sources(package, deb, inputs)


def _fetch(build_options: BuildOptions, cache: PackageCache, progress: Progress) -> Package:
    source = cache.kernel_source()
    if cache.missing([source]):
        _check_space(build_options.cache)
        progress(f"downloading {source.name} {source.version} ({source.size / 1e6:.0f} MB)")
        cache.download([source])
    cache.forget_others({source.filename})
    return source


def _setup(build_options: BuildOptions, progress: Progress) -> Prepared:
    return _prepare(build_options, _sources(build_options, progress), progress)


def _prepare(build_options: BuildOptions, sources: _Sources, progress: Progress) -> Prepared:
    inputs = sources.inputs
    prepared = Prepared(
        inputs,
        build_options.cache / _TREE,
        build_options.cache / f"objects-{inputs.key[:12]}",
    )
    if not _has_sources(prepared):
        _unpack(prepared, sources.deb, progress)
    _forget_others(prepared)
    if build_options.force or (prepared.objects / _UNFINISHED).exists():
        shutil.rmtree(prepared.objects, ignore_errors=True)
    if not prepared.config.is_file():
        _configure(build_options, prepared, progress)
    _check_config(build_options, prepared)
    return prepared


def _has_sources(prepared: Prepared) -> bool:
    try:
        return (prepared.tree / _TREE_KEY).read_text() == prepared.inputs.tree_key
    except OSError:
        return False


def _check_space(cache: Path) -> None:
    free = shutil.disk_usage(cache).free
    if free < _SPACE:
        raise ResourceExhausted(
            f"a kernel's sources and objects need {_SPACE >> 30} GB, and {cache} has {free / 1e9:.1f} GB left",
            hint="free space there, or name another directory with --cache",
        )


def _unpack(prepared: Prepared, deb: Path, progress: Progress) -> None:
    cache = prepared.tree.parent
    _check_space(cache)
    staging = cache / f"{BUILDING}tree"
    tree = staging / "tree"
    tree.mkdir(parents=True)
    progress("unpacking the sources")
    pipe(
        ["dpkg-deb", "--fsys-tarfile", str(deb)],
        ["tar", "--extract", f"--directory={staging}", "./usr/src"],
        timeout=_UNPACK_TIMEOUT_S,
    )
    archives = list(staging.glob("usr/src/linux-source-*.tar.xz"))
    if len(archives) != 1:
        raise Internal(f"{deb.name} has {len(archives)} archives with the sources of Linux instead of one")
    run(
        ["tar", "--extract", f"--file={archives[0]}", "--strip-components=1", f"--directory={tree}"],
        timeout=_UNPACK_TIMEOUT_S,
    )
    for patch in prepared.inputs.patches:
        progress(f"applying {patch.name}")
        file = staging / "patch"
        file.write_bytes(patch.content)
        command = ["patch", "--batch", "--forward", "--strip=1", f"--directory={tree}", f"--input={file}"]
        try:
            run(command, timeout=_TOOL_TIMEOUT_S)
        except Internal as error:
            raise FailedPrecondition(
                f"{patch.name} does not apply to Linux {prepared.inputs.upstream}: {error.message}",
                hint="make the patch anew for this version, or leave it out",
            ) from None
    (tree / _TREE_KEY).write_text(prepared.inputs.tree_key)
    if prepared.tree.exists():
        prepared.tree.rename(cache / f"{BUILDING}tree-before")
    tree.rename(prepared.tree)


def _configure(build_options: BuildOptions, prepared: Prepared, progress: Progress) -> None:
    progress("configuring")
    prepared.objects.mkdir(exist_ok=True)
    _allconfig(prepared).write_text(options.render(prepared.inputs.wanted))
    _make(build_options, prepared, "allnoconfig", timeout=_CONFIGURE_TIMEOUT_S)


def _check_config(build_options: BuildOptions, prepared: Prepared) -> None:
    """See that the configuration has what was asked for, and what a guest and container engines need."""
    found = options.parse(prepared.config.read_text(), str(prepared.config))
    if build_options.config is None:
        wanted = prepared.inputs.options
        lost = options.compare(wanted, found, dict.fromkeys(wanted, "a fragment"))
        _refuse("the kernel does not take what the fragments ask for", lost)
    guest, engines = requirements()
    _refuse("a guest does not work with this configuration", guest.missing(found))
    # Whoever writes a configuration may do without what only engines in a container need.
    if build_options.config is None and not build_options.own_fragments:
        _refuse("container engines do not work with this configuration", engines.missing(found))


def _refuse(what: str, findings: list[options.Finding]) -> None:
    if findings:
        named = "; ".join(str(finding) for finding in findings[:_MAX_NAMED])
        more = f"; and {len(findings) - _MAX_NAMED} more" if len(findings) > _MAX_NAMED else ""
        raise FailedPrecondition(f"{what}: {named}{more}", hint="an option is also off where one that it needs is off")


def _compile(build_options: BuildOptions, prepared: Prepared, progress: Progress) -> Prepared:
    if prepared.vmlinux.is_file():
        return prepared
    progress("compiling")
    _make(
        build_options,
        prepared,
        "vmlinux",
        timeout=_COMPILE_TIMEOUT_S,
        step=lambda made: progress(f"compiling: {made:,} files") if made % _STEPS_PER_REPORT == 0 else None,
    )
    stripped = prepared.objects / f"{BUILDING}vmlinux"
    run(["strip", "--strip-all", "-o", str(stripped), str(prepared.objects / "vmlinux")], timeout=_TOOL_TIMEOUT_S)
    if not has_pvh_entry(stripped.read_bytes()):
        raise FailedPrecondition("the kernel has no PVH entry point (CONFIG_PVH)")
    stripped.rename(prepared.vmlinux)
    return prepared


def _install(build_options: BuildOptions, progress: Progress) -> CustomKernel:
    sources = _sources(build_options, progress)
    inputs = sources.inputs
    if not build_options.force:
        try:
            return store.find(build_options.kernels, inputs.version)
        except (NotFound, FailedPrecondition):
            pass  # not there, or damaged
    prepared = _compile(build_options, _prepare(build_options, sources, progress), progress)
    build_options.kernels.mkdir(parents=True, exist_ok=True)
    documents, its_own = build_options.cache / f"{BUILDING}doc", f"usr/share/doc/{sources.package.name}"
    documents.mkdir()
    unpack_part(sources.deb, documents, f"./{its_own}")
    files = {"vmlinux": prepared.vmlinux, store.CONFIG: prepared.config, COPYRIGHT: documents / its_own / COPYRIGHT}
    files |= {name: prepared.objects / name for name in MODULE_LISTS}
    facts = {
        "release": inputs.release,
        "date": inputs.date,
        "package": {"name": sources.package.name, "version": inputs.package, "sha256": inputs.source},
        "patches": [patch.name for patch in inputs.patches],
        "config_version": inputs.config_version,
        "compiler": inputs.compiler,
    }
    with lock(build_options.kernels, timeout=_TOOL_TIMEOUT_S, waiting=progress):
        kernel = store.publish(build_options.kernels, inputs.version, files, facts)
    progress(f"kernel {kernel.version} is ready")
    return kernel


def _make(
    build_options: BuildOptions,
    prepared: Prepared,
    target: str,
    *,
    timeout: float,
    step: Callable[[int], None] = lambda _: None,
) -> None:
    ccache = shutil.which("ccache", path=PATH) is not None
    command = plan.make(prepared.tree, prepared.objects, target, jobs=build_options.jobs, ccache=ccache)
    env = plan.environment(prepared.inputs.date, _allconfig(prepared), build_options.cache / "ccache")
    compile_(
        command, prepared.objects / _LOG, env=env, timeout=timeout, unfinished=prepared.objects / _UNFINISHED, step=step
    )


def _allconfig(prepared: Prepared) -> Path:
    return prepared.objects / "wanted.config"


def _forget_others(prepared: Prepared) -> None:
    """Remove objects of other inputs: they take most of a gigabyte."""
    for path in prepared.objects.parent.glob("objects-*"):
        if path != prepared.objects:
            shutil.rmtree(path)
