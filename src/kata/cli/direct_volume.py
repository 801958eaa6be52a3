"""`kata direct-volume`: what a storage driver runs, in the words of `kata-runtime direct-volume`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kata.cli.render import ExitCode
from kata.runtime.storage import direct_volume

app = typer.Typer(help="Volumes on disks that the guest mounts, and the host does not.", no_args_is_help=True)

VolumePath = Annotated[
    str, typer.Option("--volume-path", metavar="PATH", help="Where the host would have the volume mounted.")
]


@app.command()
def add(
    volume_path: VolumePath,
    mount_info: Annotated[
        str,
        typer.Option(
            "--mount-info",
            metavar="JSON",
            help='Such as {"volume-type": "block", "device": "/dev/sdb", "fstype": "ext4"}.',
        ),
    ],
) -> int:
    """Record that a volume is on a disk."""
    direct_volume.add(volume_path, mount_info)
    return ExitCode.OK


@app.command()
def remove(volume_path: VolumePath) -> int:
    """Remove the record. Containers that have the volume keep it."""
    direct_volume.remove(volume_path)
    return ExitCode.OK


@app.command()
def stats(volume_path: VolumePath) -> int:
    """Print how full a volume is that a sandbox has, as JSON."""
    from kata.cli import volume_calls

    print(json.dumps(volume_calls.stats(volume_path)))
    return ExitCode.OK


@app.command()
def resize(
    volume_path: VolumePath,
    size: Annotated[int, typer.Option("--size", metavar="BYTES", help="What the volume's disk has now.", min=1)],
) -> int:
    """Let a volume that a sandbox has take all of its disk, which has grown. An image file is made that long."""
    from kata.cli import volume_calls

    volume_calls.resize(volume_path, size)
    return ExitCode.OK
