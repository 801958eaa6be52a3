"""`kata image`: build guest images, and look after those of this host."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kata import architecture, installed
from kata.cli.build_options import Arch, Cache, Mirror, Other, Partitioned, RecipeName, Update, Verity, as_root
from kata.cli.build_options import options as build_options
from kata.cli.image_trial import trial_boot
from kata.cli.options import AsJson
from kata.cli.render import ExitCode, say
from kata.cli.steps import steps
from kata.cli.template import table
from kata.errors import InvalidArgument
from kata.osbuilder import store

if TYPE_CHECKING:
    from kata.architecture import Architecture
    from kata.osbuilder.kernel import CustomKernel
    from kata.osbuilder.store import GuestImage

#: Seconds that a build may take, which whoever changes the images waits for, having said so.
_BUILD_S = 900.0

app = typer.Typer(help="Build guest images, and look after those of this host.", no_args_is_help=True)

Root = Annotated[
    Path | None, typer.Option("--root", help="Directory of the images.", envvar="KATA_IMAGES", show_envvar=True)
]


@app.command()
def build(
    root: Root = None,
    cache: Cache = None,
    mirror: Mirror = "",
    force: Annotated[bool, typer.Option("--force", help="Build everything, even if the image exists.")] = False,
    update: Update = False,
    recipe: RecipeName = "default",
    arch: Arch = architecture.HOST.name,
    image_format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="erofs, ext4, xfs, or initrd: no disk.",
            show_default="the recipe's",
        ),
    ] = "",
    verity: Verity = False,
    partitioned: Partitioned = False,
    other: Other = None,
    no_switch: Annotated[bool, typer.Option("--no-switch", help="Do not make it the current image.")] = False,
    kernel: Annotated[
        str,
        typer.Option(
            metavar="debian|tailored|VERSION",
            help="Debian's kernel; one built from its sources for guests; or a kernel of `kata kernel list`.",
        ),
    ] = "debian",
) -> None:
    """Build a guest image and make it the current one of its architecture; does nothing if it is up to date."""
    from kata.cli import image_from
    from kata.osbuilder import recipe as recipes
    from kata.osbuilder.build import build as build_image

    as_root()
    made_of = recipes.load(recipe)
    asked = {"format": image_format, "verity": verity, "partitioned": partitioned}
    made_of = replace(made_of, form=recipes.form({key: one for key, one in asked.items() if one}, made_of.form))
    guest = architecture.named(arch)
    own = None if kernel == "debian" else _kernel(kernel, guest, cache, mirror, update)
    with image_from.root_file_system(other, guest) as directory, steps() as progress:
        options = replace(
            build_options(cache, mirror, update),
            images=root or store.images_root(),
            force=force,
            recipe=made_of,
            switch=not no_switch,
            other=directory,
            kernel=own,
            architecture=guest,
            trial=trial_boot if own else None,
        )
        image = build_image(options, progress)
    print(image.directory)


def _kernel(name: str, guest: Architecture, cache: Path | None, mirror: str, update: bool) -> CustomKernel:
    """A kernel of this host by its version, or the tailored one, which is built if it is not there.

    Raises:
        InvalidArgument: the guest is of another architecture.
    """
    if guest is not architecture.HOST:
        raise InvalidArgument(f"kernels are built for {architecture.HOST.name} only", hint="omit --kernel")
    from kata.cli.kernel import build_options as kernel_options
    from kata.kernel_build import store as kernels

    if name != "tailored":
        return kernels.find(kernels.kernels_root(), name)
    from kata.kernel_build.build import DIRECTORY, install

    with steps() as progress:
        where = cache / DIRECTORY if cache else None
        return install(kernel_options(cache=where, mirror=mirror, update=update), progress)


@app.command("list")
def list_(root: Root = None) -> None:
    """Show the images of this host, newest first."""
    images = store.list_images(root)
    current = store.current_versions(root or store.images_root())
    heading = ("VERSION", "RECIPE", "ARCH", "ROOT", "KERNEL", "PACKAGES OF", "SIZE", "CURRENT")
    rows = [
        (
            image.version,
            str(image.manifest["recipe"]),
            str(image.manifest["architecture"]),
            image.form,
            str(image.manifest["kernel_release"]),
            str(image.manifest["date"])[:10],
            f"{image.size / 1e6:.0f} MB",
            "yes" if image.version in current else "",
        )
        for image in images
    ]
    print(table([heading, *rows]), end="")


@app.command("recipes")
def recipes_() -> None:
    """List the recipes that come with kata."""
    from kata.osbuilder import recipe

    for name in recipe.names():
        print(f"{name:<12}{recipe.load(name).description}")


@app.command()
def switch(
    version: Annotated[str, typer.Argument(help="Version, as `kata image list` prints it.")], root: Root = None
) -> None:
    """Make an image the current one of its architecture; what runs keeps the one that it has."""
    image = store.find(root, version)
    directory = root or store.images_root()
    if image.directory.parent == installed.IMAGES:
        _switch_to_installed(directory)
    else:
        _switch(directory, image)
    print(image.directory)


def _switch(root: Path, image: GuestImage) -> None:
    with store.lock(root, timeout=_BUILD_S, waiting=say):
        store.switch_current(root, image.version, image.architecture)


def _switch_to_installed(root: Path) -> None:
    if root.is_dir():
        with store.lock(root, timeout=_BUILD_S, waiting=say):
            store.switch_to_installed(root)


@app.command()
def check(
    version: Annotated[str, typer.Argument(help="Version, or 'current'.")] = store.CURRENT, root: Root = None
) -> None:
    """Verify the digests of an image's files."""
    image = store.find(root, version)
    store.check(image)
    print(f"image {image.version} is complete and unchanged")


@app.command()
def inspect(
    version: Annotated[str, typer.Argument(help="Version, or 'current'.")] = store.CURRENT,
    root: Root = None,
    largest: Annotated[int, typer.Option("--files", min=0, help="How many of the largest files to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what an image is made of: packages with versions and licenses, and its largest files."""
    from kata.cli import image_show

    image = store.find(root, version)
    items = image_show.files_of(image)
    if as_json:
        print(json.dumps(image_show.document(image, items), indent=2))
    else:
        image_show.show(image, items, largest)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="Version, or 'current'.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    root: Root = None,
    as_json: AsJson = False,
) -> int:
    """Show what differs between two images; exits with 1 if something does."""
    from kata.cli import image_show

    found = image_show.compare(store.find(root, before), store.find(root, after))
    if as_json:
        print(json.dumps(image_show.as_document(found), indent=2))
    else:
        print("\n".join(image_show.as_lines(found)), end="\n" if found else "")
    return ExitCode.FAILED if found else ExitCode.OK


@app.command()
def export(
    version: Annotated[str, typer.Argument(help="Version, or 'current'.")],
    file: Annotated[Path, typer.Argument(help="The archive to write, .tar.zst by its format.")],
    root: Root = None,
) -> None:
    """Write an image to one file, to be carried to another host."""
    from kata.osbuilder import transfer

    transfer.export(store.find(root, version), file)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What `kata image export` has written.")],
    root: Root = None,
    use: Annotated[bool, typer.Option("--switch", help="Make it the current image.")] = False,
) -> None:
    """Read an image that `kata image export` has written; its files are compared with its manifest."""
    from kata.osbuilder import transfer

    directory = root or store.images_root()
    image = transfer.import_(file, directory)
    if use:
        _switch(directory, image)
    print(image.directory)


@app.command()
def prune(
    root: Root = None,
    keep: Annotated[int, typer.Option(min=0, help="How many of the newest images to keep.")] = 2,
) -> None:
    """Remove old images, except the current one and those in use."""
    for version in store.prune(root, keep=keep):
        print(version)


if __name__ == "__main__":
    app()
