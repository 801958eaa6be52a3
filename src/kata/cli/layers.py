"""`kata layers`: list and remove what the layer cache keeps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from kata.cli.render import warn
from kata.cli.root import require_root
from kata.cli.template import table
from kata.runtime.config.loader import load
from kata.runtime.images.layer_cache import LayerCache

app = typer.Typer(help="List and remove layers of images that are kept as disks.", no_args_is_help=True)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Configuration file to use.", show_default=False)
]


@app.command("list")
def list_(
    config: ConfigFile = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List the layers, the most recently used first."""
    require_root("kata layers list")
    listed = cache_of(config).entries()
    if json:
        import json as encoder

        found: list[dict[str, Any]] = [
            {"key": entry.key, "bytes": entry.size, "used": int(entry.used), "in_use": entry.in_use} for entry in listed
        ]
        print(encoder.dumps(found, indent=2))
        return
    rows = [("LAYER", "SIZE", "USED", "IN USE")]
    for entry in listed:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        rows.append((entry.key, f"{entry.size / 1e6:.0f} MB", used, "yes" if entry.in_use else ""))
    print(table(rows), end="")


@app.command()
def prune(
    config: ConfigFile = None,
    keep: Annotated[
        int, typer.Option(min=0, metavar="MIB", help="MiB that may stay, the most recently used ones.")
    ] = 0,
) -> None:
    """Remove layers that no sandbox has, and what is damaged or half made. The next run makes them anew."""
    require_root("kata layers prune")
    cache = cache_of(config)
    for key in (*cache.sweep(), *cache.prune(keep << 20)):
        print(key)


def cache_of(path: Path | None) -> LayerCache:
    """The layer cache that a configuration file names; None for the usual ones.

    Raises:
        InvalidArgument: the file is malformed.
    """
    loaded = load(path)
    for warning in loaded.warnings:
        warn(warning)
    runtime = loaded.config.runtime
    return LayerCache(runtime.layer_cache_path, runtime.layer_cache_size << 20)
