"""Options that the commands which build guest images have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kata import architecture
from kata.errors import PermissionDenied
from kata.linux.namespaces import become_root

if TYPE_CHECKING:
    from kata.osbuilder.build import BuildOptions

Cache = Annotated[Path | None, typer.Option(help="Directory for packages and intermediates.")]
Mirror = Annotated[str, typer.Option(help="URL of the Debian archive.", envvar="KATA_MIRROR", show_envvar=True)]
Update = Annotated[bool, typer.Option("--update", help="Download the package lists again first.")]
RecipeName = Annotated[
    str, typer.Option("--recipe", metavar="NAME|FILE", help="What the guest is made of: see `kata image recipes`.")
]
Arch = Annotated[
    str,
    typer.Option(
        "--arch",
        metavar="|".join(one.name for one in architecture.ALL),
        help="Of the guest; another one than this host's is emulated.",
    ),
]
Other = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="IMAGE|DIR",
        help="A container image's archive or layout, or a directory: the guest has its files as well.",
        show_default=False,
    ),
]
Verity = Annotated[bool, typer.Option("--verity", help="Have the guest's kernel check the root (dm-verity).")]
Partitioned = Annotated[
    bool, typer.Option("--partitioned", help="Put the file system into a partition, in Kata's layout, instead of bare.")
]


def as_root() -> None:
    """Be root, which programs of the guest need to be run at build time: in a user namespace, if this user is not.

    Raises:
        PermissionDenied: the kernel does not let this user have one.
    """
    if os.geteuid() == 0:
        return
    try:
        become_root()
    except OSError as error:
        raise PermissionDenied(
            f"only root can build here: this kernel lets user {os.getuid()} have no user namespace ({error.strerror})",
            hint="run it with sudo",
        ) from None


def options(cache: Path | None, mirror: str, update: bool) -> BuildOptions:
    """What is to be built, as far as these options say it."""
    from kata.osbuilder.build import DEFAULT_CACHE, BuildOptions
    from kata.osbuilder.suite import MIRROR

    return BuildOptions(cache=cache or DEFAULT_CACHE, mirror=mirror or MIRROR, update=update)
