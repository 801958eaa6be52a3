"""`kata direct-volume`: called by storage drivers, with the syntax of `kata-runtime direct-volume`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kata.cli.render import ExitCode
from kata.runtime.storage import direct_volume

app = typer.Typer(help="Manage volumes on disks that the guest mounts instead of the host.", no_args_is_help=True)

VolumePath = Annotated[
    str, typer.Option("--volume-path", metavar="PATH", help="Mount point that the volume would have on the host.")
]


@app.command()
def add(
    volume_path: VolumePath,
    mount_info: Annotated[
        str,
        typer.Option(
            "--mount-info",
            metavar="JSON",
            help='The record, such as {"volume-type": "block", "device": "/dev/sdb", "fstype": "ext4"}.',
        ),
    ],
) -> int:
    """Write the record of a volume."""
    direct_volume.add(volume_path, mount_info)
    return ExitCode.OK


@app.command()
def remove(volume_path: VolumePath) -> int:
    """Remove the record of a volume. Containers that use the volume keep it."""
    direct_volume.remove(volume_path)
    return ExitCode.OK


@app.command()
def stats(volume_path: VolumePath) -> int:
    """Print the usage of a volume in a running sandbox, as JSON."""
    from kata.cli import management

    print(json.dumps(management.volume_stats(volume_path)))
    return ExitCode.OK


@app.command()
def resize(
    volume_path: VolumePath,
    size: Annotated[int, typer.Option("--size", metavar="BYTES", help="New size of the volume's disk.", min=1)],
) -> int:
    """Grow a volume in a running sandbox to its disk's new size. An image file is extended to it first."""
    from kata.cli import management

    management.resize_volume(volume_path, size)
    return ExitCode.OK
