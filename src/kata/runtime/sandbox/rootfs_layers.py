"""Root file systems whose layers become disks, where the configuration says so: containerd's overlayfs snapshots.

What containerd would mount on the host, an overlay of directories, the guest mounts of disks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from kata.runtime.config.settings import RuntimeConfig
from kata.runtime.images.directory_disks import directory_disk
from kata.runtime.images.layer_cache import LayerCache
from kata.runtime.storage.disk import HostUpper, Layers
from kata.runtime.storage.host_paths import RootfsMount
from kata.runtime.storage.upper_disk import upper_of

log = logging.getLogger(__name__)

#: Disks of one root at most: each takes a slot of the VM, and the guest's mount(2) takes one page of options.
MAX_LAYERS = 20


@dataclass(frozen=True)
class Overlay:
    """An overlay on the host.

    Attributes:
        lower: directories that are only read, uppermost first.
        upper, work: directories that are written to.
    """

    lower: tuple[str, ...]
    upper: str
    work: str


def overlay_of(rootfs: Sequence[RootfsMount]) -> Overlay | None:
    """The overlay that a rootfs is; None if it is something else, or says more than the guest would be told.

    Args:
        rootfs: its mounts, from containerd.
    """
    if len(rootfs) != 1 or rootfs[0].type != "overlay":
        return None
    values: dict[str, str] = {}
    for option in rootfs[0].options:
        name, _, value = option.partition("=")
        # containerd names it for the host's kernel.
        if option not in ("index=off", "rw"):
            values[name] = value
    if set(values) != {"lowerdir", "upperdir", "workdir"} or "\\" in values["lowerdir"]:
        return None
    upper, work = values["upperdir"], values["workdir"]
    if os.path.dirname(upper) != os.path.dirname(work):
        return None
    return Overlay(tuple(values["lowerdir"].split(":")), upper, work)


def layers_of(overlay: Overlay, config: RuntimeConfig, held: ExitStack) -> Layers:
    """The disks of an overlay, made if the layer cache does not have them. May take minutes.

    Args:
        overlay: the root on the host.
        config: says where layers are kept, and what is written where.
        held: gets what keeps the disks.

    Raises:
        KataError: as `directory_disk` and `upper_of`.
    """
    cache = LayerCache(config.layer_cache_path, config.layer_cache_size << 20)
    lower = []
    for directory in overlay.lower:
        disk = directory_disk(directory, cache)
        held.callback(disk.close)
        lower.append(str(disk.disk))
    if config.rootfs_upper == "host":
        directory, name = os.path.split(overlay.upper)
        return Layers(tuple(lower), HostUpper(directory, name, os.path.basename(overlay.work)))
    return Layers(tuple(lower), upper_of(config, held))
