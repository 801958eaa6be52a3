"""How a sandbox's shared tree is served, where the configuration leaves it open.

9p costs least: it needs no memory that the guest shares with another process, so that a template's pages stay shared.
But programs that lock files, map them or append to them together need virtio-fs (docs/guide/storage.md). Most of them
do so in volumes, and for a sandbox of one container these are known before its VM is planned. Of a pod's volumes the
kubelet has made the directories before it asks for the pod; it says which pod that is in an annotation.

Imports nothing slow: prelaunch needs this.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from kata.oci.spec import Spec
from kata.runtime.config.settings import SHARED_FS_AUTO, Config
from kata.runtime.hypervisor.base import SHARE_9P, SHARE_VIRTIO_FS
from kata.runtime.storage.kubernetes_volumes import EMPTY_DIR, WATCHABLE

_BIND = frozenset({"bind", "rbind"})
_READ_ONLY = frozenset({"ro", "rro"})
#: What the host mounts in such a volume later is seen in the guest. Over virtio-fs it would be busy, for the host,
#: until the guest has forgotten all files in it.
_FOLLOWS_HOST = frozenset({"slave", "rslave", "shared", "rshared"})
#: Files that container engines bind into every container.
_ENGINES_OWN = frozenset({"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv"})
#: Trees of which a guest has its own.
_GUESTS_OWN = ("/dev/", "/proc/", "/sys/")
#: Where the kubelet has the volumes of pods, by default, and containerd's annotation of a pod with its uid.
_KUBELETS_PODS = Path("/var/lib/kubelet/pods")
_POD_UID = "io.kubernetes.cri.sandbox-uid"
_UID = re.compile(r"[0-9A-Za-z-]{1,128}")


def volumes_to_write(spec: Spec) -> list[str]:
    """Destinations of the binds that a container may write to, without those that every engine makes.

    Volumes with mount propagation are left out, too: 9p suits them better.

    The volumes are not looked at, so that no file server that is away can hold up a start.
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


def volumes_of_pod(spec: Spec, *, guest_empty_dirs: bool, pods: Path = _KUBELETS_PODS) -> list[str]:
    """Names of the volumes of a pod that are shared with the guest and that containers may write to.

    Neither what the kubelet projects, nor what the guest has of its own. A hostPath is not among them: the kubelet
    makes no directory for it.

    Only names are read, not the volumes: these may be on a file server that is away.

    Args:
        spec: of the pod's sandbox.
        guest_empty_dirs: whether an emptyDir on disk is the guest's own.
        pods: the kubelet's directory.
    """
    uid = str((spec.get("annotations") or {}).get(_POD_UID, ""))
    if not _UID.fullmatch(uid):
        return []
    found = []
    try:
        for plugin in os.scandir(pods / uid / "volumes"):
            if plugin.name in WATCHABLE:
                continue
            for volume in os.listdir(plugin.path):
                # An emptyDir in memory is a mount on the kubelet's disk.
                in_memory = plugin.name == EMPTY_DIR and os.path.ismount(f"{plugin.path}/{volume}")
                if not in_memory and not (plugin.name == EMPTY_DIR and guest_empty_dirs):
                    found.append(volume)
    except OSError:
        pass  # it is no pod of a kubelet, or of one that has its directory elsewhere
    return sorted(found)


def decide(config: Config, spec: Spec) -> Config:
    """The configuration with "auto" decided for a sandbox.

    Args:
        config: with the spec's annotations applied.
        spec: of the first container, or of the pod's sandbox.
    """
    over_9p, *over_virtio_fs = decided(config)
    if not over_virtio_fs:
        return over_9p
    guest_empty_dirs = not config.runtime.disable_guest_empty_dir
    written = volumes_to_write(spec) or volumes_of_pod(spec, guest_empty_dirs=guest_empty_dirs)
    return over_virtio_fs[0] if written else over_9p


def decided(config: Config) -> list[Config]:
    """What `decide` may come to: over 9p first and over virtio-fs second, or the configuration as it is."""
    if config.hypervisor.shared_fs != SHARED_FS_AUTO:
        return [config]
    return [
        replace(config, hypervisor=replace(config.hypervisor, shared_fs=chosen))
        for chosen in (SHARE_9P, SHARE_VIRTIO_FS)
    ]
