"""What a container gets otherwise than its spec says, because it runs in a VM: sentences for the log."""

from __future__ import annotations

from collections.abc import Sequence

from kata.oci import left_out
from kata.oci.spec import Spec
from kata.runtime.hypervisor.base import SHARE_9P
from kata.runtime.launch.shared_fs import volumes_to_write
from kata.runtime.storage.container_files import GUEST_PARTS, GUEST_SHARED, ContainerPlan
from kata.runtime.storage.host_paths import SENDING, HostView, is_bind


def warnings(spec: Spec, host: HostView, files: ContainerPlan, shared_fs: str) -> list[str]:
    """All that is worth a warning when a container is created.

    Args:
        spec: the container's.
        host: what its paths are on the host.
        files: its plan.
        shared_fs: how its sandbox shares files, as in the configuration.
    """
    found = [
        *files.warnings,
        *(
            f"asks for the host's {kind} namespace, which a VM cannot share: it has one in the guest"
            for kind in host_namespaces(spec)
        ),
    ]
    if shared_fs == SHARE_9P and (written := _from_shared_tree(volumes_to_write(spec), files)):
        found.append(
            f"may write to {', '.join(written)} over 9p, where programs that lock files, map them or append to them "
            'together can lose data; shared_fs = "virtio-fs" in the configuration or an annotation avoids that'
        )
    found += lost_propagation(spec, host)
    if lost := left_out.of_spec(spec):
        found.append(f"not passed to the guest: {', '.join(lost)}")
    return found


def host_namespaces(spec: Spec) -> list[str]:
    """Types of the namespaces that a container is to share with the host, although it can with its sandbox only."""
    named = {entry.get("type") for entry in (spec.get("linux") or {}).get("namespaces") or ()}
    return [kind for kind in ("ipc", "pid", "uts") if kind not in named]


def lost_propagation(spec: Spec, host: HostView) -> list[str]:
    """What of the mount propagation that a container asks for it cannot have."""
    lost = []
    for mount in spec.get("mounts") or ():
        source, options = str(mount.get("source", "")), set(mount.get("options") or ())
        if is_bind(mount) and options & SENDING:
            lost.append(f"what it mounts in {mount.get('destination')} stays in its VM, and does not reach the host")
        if is_bind(mount) and source in host.private:
            lost.append(
                f"what the host mounts in {source} later is not seen: that is on a private mount (mount --make-rshared)"
            )
    return lost


def _from_shared_tree(destinations: Sequence[str], files: ContainerPlan) -> list[str]:
    """Those of a container's mounts that the guest has from the host, not of its own or on a disk."""
    trees = (f"{GUEST_SHARED}/", f"{GUEST_PARTS}/")
    shared = {mount["destination"] for mount in files.mounts if mount.get("source", "").startswith(trees)}
    return [destination for destination in destinations if destination in shared]
