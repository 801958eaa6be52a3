"""How a sandbox's shared tree is served, where the configuration leaves it open.

9p costs least: it needs no memory that the guest shares with another process, so that a template's pages stay shared.
But programs that lock files, map them or append to them together need virtio-fs (docs/guide/storage.md). Most of them
do so in volumes, and for a sandbox of one container these are known before its VM is planned.

Imports nothing slow: prelaunch needs this.
"""

from __future__ import annotations

from dataclasses import replace

from kata.oci.spec import Spec
from kata.runtime.config.settings import SHARED_FS_AUTO, Config
from kata.runtime.hypervisor.base import SHARE_9P, SHARE_VIRTIO_FS

_BIND = frozenset({"bind", "rbind"})
_READ_ONLY = frozenset({"ro", "rro"})
#: What the host mounts in such a volume later is seen in the guest. Over virtio-fs it would be busy, for the host,
#: until the guest has forgotten all files in it.
_FOLLOWS_HOST = frozenset({"slave", "rslave", "shared", "rshared"})
#: Files that container engines bind into every container.
_ENGINES_OWN = frozenset({"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv"})
#: Trees of which a guest has its own.
_GUESTS_OWN = ("/dev/", "/proc/", "/sys/")


def volumes_to_write(spec: Spec) -> list[str]:
    """Destinations of the binds that a container may write to, without those that every engine makes.

    Volumes with mount propagation are left out, too: 9p suits them better.

    The host is not looked at, so that no file server that is away can hold up a start.
    """
    found = []
    for mount in spec.get("mounts") or ():
        options, destination = {mount.get("type"), *(mount.get("options") or ())}, mount["destination"]
        if (
            options & _BIND
            and not options & (_READ_ONLY | _FOLLOWS_HOST)
            and destination not in _ENGINES_OWN
            and not f"{destination}/".startswith(_GUESTS_OWN)
        ):
            found.append(destination)
    return found


def decide(config: Config, spec: Spec) -> Config:
    """The configuration with "auto" decided for a sandbox.

    Args:
        config: with the spec's annotations applied.
        spec: of the first container, or of the pod's sandbox, whose containers' volumes are not known yet.
    """
    over_9p, *over_virtio_fs = decided(config)
    return over_virtio_fs[0] if over_virtio_fs and volumes_to_write(spec) else over_9p


def decided(config: Config) -> list[Config]:
    """What `decide` may come to: over 9p first and over virtio-fs second, or the configuration as it is."""
    if config.hypervisor.shared_fs != SHARED_FS_AUTO:
        return [config]
    return [
        replace(config, hypervisor=replace(config.hypervisor, shared_fs=chosen))
        for chosen in (SHARE_9P, SHARE_VIRTIO_FS)
    ]
