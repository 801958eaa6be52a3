"""The part of a container's spec that the guest gets: pure edits, made on the host before CreateContainer.

Properties that mean the same in the guest are kept. Properties that refer to the host (a path, a CPU, a device number,
a security policy in the host's kernel) are removed. So are those that the guest's runtime (crun, cgroups version 2)
refuses although runc ignores them: a container that starts with runc starts here.

    ociVersion          that of the guest's runtime, whatever 1.x the engine writes
    hooks               only startContainer stays: the others run on the host
    namespaces          pid, network, cgroup, time: removed, the agent decides; the others lose their host paths
    cgroupsPath         removed: the agent makes one for each container
    apparmor, selinux   removed: profiles and labels are loaded in the host's kernel, not in the guest's
    capabilities        those that the guest's kernel does not have are removed
    seccomp             removed unless asked for
    intelRdt            removed: cache allocation is the host's
    annotations         those for crun are removed: the runtime in the guest is an implementation detail
    resources           see `resources_for_guest`

Untouched: the rest of the process, rlimits, sysctls, masked and read-only paths, linux.devices (the hot-plug code knows
their numbers), and mounts, which the storage plan has edited before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kata.oci import capabilities

if TYPE_CHECKING:
    from kata.oci.spec import Device, DeviceCgroup, LinuxResources, Namespace, Process, Spec

#: Debian 12's crun (1.8) refuses each version that does not contain "1.0", such as 1.2.1; Debian 13's (1.21) does not
#: look. All versions are read alike.
GUEST_OCI_VERSION = "1.0.2"

_AGENT_DECIDES = frozenset(("pid", "network", "cgroup", "time"))

# Character devices with the same numbers on every Linux (the kernel's Documentation/admin-guide/devices.txt).
_EVERYWHERE_MAJORS = frozenset((1, 5, *range(136, 144)))  # memory devices, terminals, pseudo-terminals
_EVERYWHERE = frozenset(((10, 200), (10, 229)))  # /dev/net/tun, /dev/fuse

_KEPT_MEMORY = frozenset(("limit", "reservation", "swap"))
_KEPT_CPU = frozenset(("shares", "quota", "period", "burst", "idle"))
_KEPT_UNIFIED = frozenset(("cpu", "memory", "pids"))


def for_guest(spec: Spec, *, rootfs: str, keep_seccomp: bool) -> Spec:
    """The spec for the guest. The argument is not changed; the result shares what was not edited with it.

    Args:
        spec: the container's, its mounts already those of the guest.
        rootfs: path of the root file system in the guest.
        keep_seccomp: whether the guest is to filter system calls.
    """
    edited = spec.copy()
    edited["ociVersion"] = GUEST_OCI_VERSION
    edited["root"] = {**spec.get("root", {}), "path": rootfs}
    if "process" in spec:
        edited["process"] = process_for_guest(spec["process"])
    start_hooks = edited.pop("hooks", {}).get("startContainer")
    if start_hooks:
        edited["hooks"] = {"startContainer": start_hooks}
    if "annotations" in spec:
        edited["annotations"] = {
            key: value for key, value in spec["annotations"].items() if not key.startswith("run.oci.")
        }
    if "linux" in spec:
        linux = spec["linux"].copy()
        linux.pop("cgroupsPath", None)
        linux.pop("mountLabel", None)
        linux.pop("intelRdt", None)
        if not keep_seccomp:
            linux.pop("seccomp", None)
        if "namespaces" in linux:
            linux["namespaces"] = _namespaces(linux["namespaces"], mapped=bool(linux.get("uidMappings")))
        if "resources" in linux:
            linux["resources"] = resources_for_guest(linux["resources"], linux.get("devices", ()))
        edited["linux"] = linux
    return edited


def process_for_guest(process: Process) -> Process:
    """The process for the guest: a container's, or that of an exec. The argument is not changed."""
    edited = process.copy()
    edited.pop("apparmorProfile", None)
    edited.pop("selinuxLabel", None)
    if "capabilities" in edited:
        edited["capabilities"] = capabilities.known_of(edited["capabilities"])
    return edited


def shares_pids(spec: Spec) -> bool:
    """Whether the container joins another's pid namespace, as `shareProcessNamespace` of Kubernetes has it.

    The one to join is then the sandbox's in the guest: CreateContainerRequest.sandbox_pidns.
    """
    namespaces = spec.get("linux", {}).get("namespaces", ())
    return any(entry["type"] == "pid" and entry.get("path") for entry in namespaces)


def join_pids(spec: Spec, container_id: str) -> Spec:
    """The spec for a guest in which the container joins another one's pid namespace.

    Kata's protocol knows only the sandbox's. The path of the namespace is the other's id, which Kata's agents ignore.
    """
    linux = spec.get("linux", {}).copy()
    linux["namespaces"] = [*linux.get("namespaces", ()), {"type": "pid", "path": container_id}]
    return {**spec, "linux": linux}


def resources_for_guest(resources: LinuxResources, devices: Iterable[Device] = ()) -> LinuxResources:
    """The container's limits inside the VM, which as a whole has limits on the host.

        pids            kept: a fork bomb has to stop at the user's limit
        memory          limit, reservation and swap kept: the container is killed, not the VM; the rest is cgroups
                        version 1, which crun refuses and runc ignores
        cpu             shares, quota, period, burst and idle kept: a pod's containers compete in the guest; cpus and
                        mems name the host's; realtime is cgroups version 1
        hugepageLimits  kept if not 0: CRI writes a 0 for every page size of the host, and the guest may lack that size
        unified         cpu, memory and pids kept: the others refer to the host's CPUs and disks
        others          removed (blockIO, network, rdma): the host's devices, or cgroups version 1

    Device rules work in the guest as they do with runc, "deny everything" first. A rule that allows a device number is
    kept if the number means the same there: it belongs to one of `devices`, whose rules the agent renumbers, or it is
    the same on every Linux. Any other number is another device in the guest, maybe the agent's own channel. Without
    a rule the guest's runtime would allow everything, so at least one stays.

    Args:
        resources: the container's.
        devices: its `linux.devices`.
    """
    edited: LinuxResources = {}
    if "devices" in resources:
        edited["devices"] = _device_rules(resources["devices"], devices)
    if "memory" in resources:
        memory = resources["memory"].copy()
        for key in memory.keys() - _KEPT_MEMORY:
            del memory[key]  # type: ignore[misc]
        edited["memory"] = memory
    if "cpu" in resources:
        cpu = resources["cpu"].copy()
        for key in cpu.keys() - _KEPT_CPU:
            del cpu[key]  # type: ignore[misc]
        edited["cpu"] = cpu
    if "pids" in resources:
        edited["pids"] = resources["pids"]
    if "hugepageLimits" in resources:
        edited["hugepageLimits"] = [entry for entry in resources["hugepageLimits"] if entry["limit"]]
    if "unified" in resources:
        edited["unified"] = {
            key: value for key, value in resources["unified"].items() if key.partition(".")[0] in _KEPT_UNIFIED
        }
    return edited


def update_for_guest(resources: LinuxResources) -> LinuxResources:
    """New limits for a running container, as `resources_for_guest` but without device rules.

    CRI repeats the spec's rules with every update. In the guest they would replace the renumbered ones.
    """
    edited = resources_for_guest(resources)
    edited.pop("devices", None)
    return edited


def _namespaces(namespaces: Iterable[Namespace], *, mapped: bool) -> list[Namespace]:
    # A user namespace that was joined by its path brings no mapping along. Without one no id would be valid in it.
    return [
        {"type": entry["type"]}
        for entry in namespaces
        if entry["type"] not in _AGENT_DECIDES and (entry["type"] != "user" or mapped)
    ]


def _device_rules(rules: list[DeviceCgroup], devices: Iterable[Device]) -> list[DeviceCgroup]:
    numbers: set[tuple[str, int, int]] = {
        (entry["type"].replace("u", "c"), entry.get("major", 0), entry.get("minor", 0)) for entry in devices
    }
    kept = [rule for rule in rules if _means_the_same(rule, numbers)]
    return kept if kept or not rules else [{"allow": False, "access": "rwm"}]


def _means_the_same(rule: DeviceCgroup, numbers: set[tuple[str, int, int]]) -> bool:
    kind, major, minor = rule.get("type", "a"), rule.get("major", -1), rule.get("minor", -1)
    if not rule["allow"] or (major < 0 and minor < 0):
        return True
    if (kind, major, minor) in numbers:
        return True
    return kind == "c" and (major in _EVERYWHERE_MAJORS or (major, minor) in _EVERYWHERE)
