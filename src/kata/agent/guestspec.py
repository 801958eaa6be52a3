"""The last edits of a container's spec, with facts that only the guest knows: namespaces, cgroup, root disk.

Pure functions on the OCI spec as data; the host has done its own edits before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

#: The kernel's default (Documentation/admin-guide/cgroup-v2.rst, cpu.max).
DEFAULT_PERIOD_US = 100_000

# Decided here, whatever the host sent. The protocol does not carry time namespaces.
_OURS = frozenset(("ipc", "uts", "pid", "network", "cgroup", "time"))


class Namespaces(NamedTuple):
    """Paths of the namespaces that the containers of the sandbox share; "" for pid gives the container its own."""

    ipc: str
    uts: str
    network: str
    pid: str = ""


def pids_of(spec: Mapping[str, Any]) -> str:
    """The id of the container whose pid namespace a container joins (`kata.oci.edit.join_pids`); "" for none."""
    namespaces = (spec.get("linux") or {}).get("namespaces") or []
    found = next((str(entry.get("path") or "") for entry in namespaces if entry.get("type") == "pid"), "")
    return "" if "/" in found else found


def finish(
    spec: Mapping[str, Any],
    *,
    rootfs: str,
    cgroup: str,
    namespaces: Namespaces,
    root_device: tuple[int, int] | None,
) -> dict[str, Any]:
    """The spec for the runtime; the argument is not changed.

    Args:
        spec: the container's, as the host sent it.
        rootfs: the root directory as the agent has mounted it.
        cgroup: path within the cgroup file system. The host's own path would mean nothing here.
        namespaces: those of the sandbox. The cgroup namespace is always new: it hides the other containers.
        root_device: major and minor of the guest's root disk, which containers must not open even if they may make
            device nodes; None if it is not a disk.
    """
    linux = dict(spec.get("linux") or {})
    kept = [entry for entry in linux.get("namespaces") or [] if entry.get("type") not in _OURS]
    # A shared network by its path: without an entry crun refuses the net.* sysctls that Kubernetes sets.
    linux["namespaces"] = [
        *kept,
        {"type": "ipc", "path": namespaces.ipc},
        {"type": "uts", "path": namespaces.uts},
        {"type": "network", "path": namespaces.network},
        {"type": "pid", "path": namespaces.pid} if namespaces.pid else {"type": "pid"},
        {"type": "cgroup"},
    ]
    linux["cgroupsPath"] = cgroup
    # Not crun's own, which may be without randomized addresses (`kata.agent.reaper`).
    linux["personality"] = linux.get("personality") or {"domain": "LINUX"}
    if root_device:
        linux["resources"] = _deny_device(linux.get("resources") or {}, *root_device)
    edited = {**spec, "linux": linux, "root": {**(spec.get("root") or {}), "path": rootfs}}
    if any(entry.get("type") == "user" for entry in kept):
        # The sandbox's UTS namespace belongs to the guest's user namespace: from another one it cannot be renamed,
        # and it has the right name already.
        edited.pop("hostname", None)
        # Nor can a sysfs of the sandbox's network be mounted from there: crun would bind the guest's, without options.
        edited["mounts"] = [_bound_sysfs(mount) for mount in spec.get("mounts") or ()]
    return edited


def _bound_sysfs(mount: Mapping[str, Any]) -> Mapping[str, Any]:
    if mount.get("type") != "sysfs":
        return mount
    return {**mount, "type": "bind", "source": "/sys", "options": ["rbind", *(mount.get("options") or ())]}


def without_quota(spec: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Take the CPU quota out of a spec, so that the runtime does its own work at the guest's speed.

    Args:
        spec: the container's; it is not changed.

    Returns:
        The spec without it, and what is to be written to files of the container's cgroup once it has been created, in
        this order.
    """
    linux = spec.get("linux") or {}
    resources = linux.get("resources") or {}
    files = {}
    if cpu := dict(resources.get("cpu") or {}):
        if (cpu.get("quota") or 0) > 0:
            files["cpu.max"] = f"{cpu.pop('quota')} {cpu.pop('period', 0) or DEFAULT_PERIOD_US}"
        resources = {**resources, "cpu": cpu}
    if unified := dict(resources.get("unified") or {}):
        # These win, as in crun.
        files.update({name: unified.pop(name) for name in ("cpu.max", "cpu.max.burst") if name in unified})
        resources = {**resources, "unified": unified}
    return {**spec, "linux": {**linux, "resources": resources}} if files else dict(spec), files


def _deny_device(resources: Mapping[str, Any], major: int, minor: int) -> dict[str, Any]:
    # Rules decide in order, the last match wins; without any rule everything is allowed, which has to be said now.
    rules = list(resources.get("devices") or [{"allow": True, "access": "rwm"}])
    rules.append({"allow": False, "type": "b", "major": major, "minor": minor, "access": "rwm"})
    return {**resources, "devices": rules}
