"""`kata-osbuilder`: the steps of an image by Kata's words, each by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kata import architecture
from kata.cli import build_options, image_from
from kata.cli.program import version_option
from kata.cli.steps import steps
from kata.errors import InvalidArgument
from kata.osbuilder import recipe as recipes
from kata.osbuilder.recipe import INITRD, Form

PROGRAM = "kata-osbuilder"
#: Kata's words for what guests are made of; here it is one.
_DISTRIBUTION = "debian"

app = typer.Typer(
    name=PROGRAM,
    help="Make root file systems, images and initrds for guests, step by step. `kata image build` does it all.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RootDirectory = Annotated[Path, typer.Argument(metavar="ROOTFS_DIR", help="A directory that `rootfs` has made.")]


@app.callback()
def _osbuilder(
    context: typer.Context,
    _version: Annotated[bool, version_option(PROGRAM)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print Python's traceback of an error.")] = False,
) -> None:
    context.obj.debug = debug


@app.command()
def rootfs(
    distribution: Annotated[str, typer.Argument(metavar="DISTRO", help="What it is made of.")] = _DISTRIBUTION,
    directory: Annotated[Path, typer.Option("-r", "--rootfs-dir", metavar="DIR", help="The directory to make.")] = Path(
        "rootfs"
    ),
    release: Annotated[
        str,
        typer.Option("-o", "--os-version", metavar="RELEASE", help="Its release; there is one.", show_default=False),
    ] = "",
    listed: Annotated[bool, typer.Option("-l", "--list", help="List what roots can be made of, and exit.")] = False,
    recipe: build_options.RecipeName = recipes.DEFAULT,
    arch: build_options.Arch = architecture.HOST.name,
    other: build_options.Other = None,
    cache: build_options.Cache = None,
    mirror: build_options.Mirror = "",
    update: build_options.Update = False,
) -> None:
    """Make a root file system as a directory, with the agent in it."""  # noqa: DOC501
    from kata.osbuilder import suite
    from kata.osbuilder.build import build_root

    if listed:
        print(_DISTRIBUTION)
        return
    if distribution != _DISTRIBUTION:
        raise InvalidArgument(
            f"roots are made of {_DISTRIBUTION}, not of {distribution[:32]}",
            hint="another one's files are added by: kata-osbuilder rootfs --from IMAGE",
        )
    if release:
        suite.check_guest(release)
    build_options.as_root()
    guest = architecture.named(arch)
    with image_from.root_file_system(other, guest) as found, steps() as progress:
        options = replace(
            build_options.options(cache, mirror, update),
            recipe=recipes.load(recipe),
            other=found,
            architecture=guest,
        )
        build_root(options, directory, progress)
    print(directory)


@app.command()
def image(
    root: RootDirectory,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The image to write.")] = Path(
        "kata-containers.img"
    ),
    image_format: Annotated[
        str, typer.Option("-f", "--format", metavar="FORMAT", help="erofs, ext4 or xfs.", show_default="erofs")
    ] = "erofs",
    free: Annotated[
        int, typer.Option("-r", "--root-free-space", metavar="MB", min=0, help="MiB to leave free in ext4 and xfs.")
    ] = 0,
    label: Annotated[str, typer.Option(metavar="LABEL", help="Label of ext4 and xfs.")] = Form().label,
    verity: build_options.Verity = False,
    partitioned: build_options.Partitioned = False,
) -> None:
    """Make an image of a root file system: the file system alone, or in a partition."""  # noqa: DOC501
    from kata.osbuilder import single

    if image_format == INITRD:
        raise InvalidArgument("an initrd is no image", hint=f"run: {PROGRAM} initrd {root}")
    asked = {"format": image_format, "free_mib": free, "label": label, "verity": verity, "partitioned": partitioned}
    single.make(root, output, recipes.form(asked))
    print(output)


@app.command()
def initrd(
    root: RootDirectory,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The initrd to write.")] = Path(
        "kata-containers-initrd.img"
    ),
) -> None:
    """Make an initrd of a root file system, which is then the guest's whole root."""
    from kata.osbuilder import single

    single.make(root, output, Form(INITRD))
    print(output)
