"""`kata kernel`: build the guest's kernel from Debian's sources, and check configurations of kernels."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kata.cli.render import ExitCode, say
from kata.cli.steps import steps
from kata.cli.template import table
from kata.errors import InvalidArgument, KataError, NotFound

if TYPE_CHECKING:
    from kata.kernel_build.build import BuildOptions

#: Whoever has the lock of the kernels copies a kernel's files.
_LOCK_TIMEOUT_S = 30.0

app = typer.Typer(help="Build a kernel for guests from Debian's sources.", no_args_is_help=True)

Kernels = Annotated[
    Path | None, typer.Option("--root", help="Directory of the kernels.", envvar="KATA_KERNELS", show_envvar=True)
]
Cache = Annotated[Path | None, typer.Option("--cache", help="Directory for sources and objects.")]
Mirror = Annotated[
    str, typer.Option("--mirror", help="URL of the Debian archive.", envvar="KATA_MIRROR", show_envvar=True)
]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="A whole configuration, instead of the project's fragments.")
]
Fragments = Annotated[
    list[Path] | None,
    typer.Option("--fragment", help="More options, which may change what was set before; may be repeated."),
]
Patches = Annotated[Path | None, typer.Option("--patches", "-p", help="Directory of patches to apply as well.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=0, help="Compilers at a time; 0: one for each CPU.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Build everything, even if the kernel exists.")]
Update = Annotated[bool, typer.Option("--update", help="Download the package lists again first.")]


def _add(name: str, text: str, act: Callable[[BuildOptions, Callable[[str], None]], Iterable[object]]) -> None:
    """Add a command of a build; what it returns is printed, a line each."""

    @app.command(name, help=text)
    def command(
        root: Kernels = None,
        cache: Cache = None,
        mirror: Mirror = "",
        config: Config = None,
        fragment: Fragments = None,
        patches: Patches = None,
        jobs: Jobs = 0,
        force: Force = False,
        update: Update = False,
    ) -> None:
        options = build_options(root, cache, mirror, config, fragment, patches, jobs, force, update)
        with steps() as progress:
            lines = act(options, progress)
        for line in lines:
            print(line)


def _setup(options: BuildOptions, progress: Callable[[str], None]) -> Iterable[object]:
    from kata.kernel_build.build import setup

    prepared = setup(options, progress)
    return prepared.tree, prepared.objects


def _build(options: BuildOptions, progress: Callable[[str], None]) -> Iterable[object]:
    from kata.kernel_build.build import build

    return (build(options, progress).vmlinux,)


def _install(options: BuildOptions, progress: Callable[[str], None]) -> Iterable[object]:
    from kata.kernel_build.build import install

    return (install(options, progress).version,)


_add("setup", "Fetch, patch and configure the sources; prints where they are, and where the objects go.", _setup)
_add("build", "Compile the kernel, after a setup; prints where it is.", _build)
_add(
    "install",
    "Put the kernel, after a build, where `kata image build --kernel` takes it from; prints its version.",
    _install,
)


@app.command("config")
def config_(
    version: Annotated[str, typer.Argument(help="A kernel of this host; the fragments without it.")] = "",
    root: Kernels = None,
    fragment: Fragments = None,
) -> None:
    """Print the options that the fragments ask for, or all that a kernel has."""
    from kata.kernel_build import fragments, options, store

    if version:
        print((store.find(root or store.kernels_root(), version).directory / store.CONFIG).read_text(), end="")
    else:
        print(options.render(fragments.options(fragment or ())), end="")


@app.command()
def check(
    what: Annotated[
        str, typer.Argument(help="A kernel of this host, or a file with a configuration, which gzip may have packed.")
    ] = "/proc/config.gz",
    root: Kernels = None,
    modules: Annotated[
        bool, typer.Option("--modules", help="Take a module for what is to be built in, as for an initrd with modules.")
    ] = False,
) -> int:
    """Check a configuration against what guests need and container engines ask for."""
    from kata.kernel_build.options import parse
    from kata.kernel_build.requirements import requirements

    found = parse(_configuration(what, root), what)
    bad = [
        (one.name, f"CONFIG_{finding.name}", finding.found, finding.wanted, finding.reason)
        for one in requirements()
        for finding in one.missing(found, modules=modules)
    ]
    if bad:
        print(table([("LIST", "OPTION", "IS", "SHOULD BE", "FOR"), *bad]), end="")
        say(f"{what}: {len(bad)} options are not what they should be")
        return ExitCode.FAILED
    print(f"{what} has all that a guest needs and container engines ask for")
    return ExitCode.OK


@app.command("list")
def list_(root: Kernels = None) -> None:
    """Show the kernels of this host, newest first."""
    from kata.kernel_build import store

    where = root or store.kernels_root()
    rows = [("VERSION", "RELEASE", "SOURCES OF", "SIZE", "STATE")]
    for version in store.versions(where):
        try:
            kernel = store.find(where, version)
            package = store.read_manifest(kernel.directory)["package"]
            size = kernel.vmlinux.stat().st_size
            rows.append((version, kernel.release, package["version"], f"{size / 1e6:.0f} MB", "complete"))
        except KataError:
            # Why is told by whoever uses it.
            rows.append((version, "", "", "", "unusable"))
    print(table(rows), end="")


@app.command()
def prune(
    root: Kernels = None,
    keep: Annotated[int, typer.Option(min=0, help="How many of the newest kernels to keep.")] = 1,
) -> None:
    """Remove old kernels; images keep theirs. What compiling has left goes with its directory, see --cache."""
    from kata.kernel_build import store
    from kata.osbuilder.store import lock

    where = root or store.kernels_root()
    if where.is_dir():
        with lock(where, timeout=_LOCK_TIMEOUT_S, waiting=say):
            for version in store.remove_all_but(where, keep):
                print(version)


def build_options(
    root: Path | None = None,
    cache: Path | None = None,
    mirror: str = "",
    config: Path | None = None,
    fragment: list[Path] | None = None,
    patches: Path | None = None,
    jobs: int = 0,
    force: bool = False,
    update: bool = False,
) -> BuildOptions:
    """The options of a command as those of a build; what is not given has its default."""
    from kata.kernel_build.build import BuildOptions

    given = {"kernels": root, "cache": cache, "mirror": mirror, "config": config, "own_patches": patches, "jobs": jobs}
    return BuildOptions(
        **{name: value for name, value in given.items() if value},  # type: ignore[arg-type]
        own_fragments=tuple(fragment or ()),
        force=force,
        update=update,
    )


def _configuration(what: str, root: Path | None) -> str:
    """The text of a configuration: of a kernel of this host, or in a file.

    Raises:
        NotFound: there is neither.
        InvalidArgument: it is not text.
    """
    from kata.kernel_build import store
    from kata.kernel_build.options import MAX_TEXT

    path = Path(what)
    if "/" not in what and not path.exists():
        path = store.find(root or store.kernels_root(), what).directory / store.CONFIG
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not packed:
                return file.read(MAX_TEXT + 1).decode()
            with gzip.open(file) as unpacked:
                return unpacked.read(MAX_TEXT + 1).decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path} is no kernel configuration: it is not text") from None
    except (OSError, EOFError, zlib.error) as error:
        raise NotFound(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}",
            hint="/proc/config.gz is there if the running kernel has CONFIG_IKCONFIG_PROC; else see /boot/config-*",
        ) from None


if __name__ == "__main__":
    app()
