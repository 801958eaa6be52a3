"""Requests to the agent, made from spec and configuration without touching anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kata.errors import InvalidArgument
from kata.oci import convert, edit
from kata.oci.annotations import ContainerType, classify
from kata.oci.spec import MAX_HOSTNAME, Spec
from kata.protocols import agent_pb2, shared_tree, types_pb2
from kata.runtime.config.settings import Config
from kata.runtime.devices.block import Attached
from kata.runtime.devices.vfio import AttachedGroup
from kata.runtime.hypervisor.base import SHARE_VIRTIO_FS
from kata.runtime.storage.container_files import GUEST_SHARED, GUEST_SHM, ContainerPlan
from kata.runtime.storage.disk_mount import DiskMount
from kata.runtime.storage.kubernetes_volumes import GuestStorage

_DEFAULT_SHM = 64 << 20
#: The option with which Kata's agent makes a directory before it mounts an overlay.
_OVERLAY_CREATE = "io.katacontainers.volume.overlayfs.create_directory="


def refuse_host_network(container_id: str, spec: Spec) -> None:
    """Refuse a container that is to be in the host's network namespace.

    Raises:
        InvalidArgument: its spec has no network namespace, which means the runtime's (runtime-spec, "Namespaces").
    """
    namespaces = (spec.get("linux") or {}).get("namespaces") or ()
    if "network" not in {entry.get("type") for entry in namespaces}:
        raise InvalidArgument(
            f"container {container_id} asks for the host network, which a VM cannot have",
            hint="run it without the host network",
        )


def create_sandbox_request(
    sandbox_id: str, spec: Spec, config: Config, shm_size: int = 0
) -> agent_pb2.CreateSandboxRequest:
    """The agent's part of creating a sandbox: host name, shared tree, /dev/shm, kernel modules.

    Args:
        sandbox_id: the sandbox's.
        spec: of its first container.
        config: the sandbox's.
        shm_size: bytes of the /dev/shm that its containers share; 0 for what engines usually give them.
    """
    request = agent_pb2.CreateSandboxRequest(
        hostname=spec.get("hostname") or sandbox_id[:MAX_HOSTNAME],
        sandbox_id=sandbox_id,
        guest_hook_path=config.hypervisor.guest_hook_path,
        storages=[
            _shared_tree(config),
            agent_pb2.Storage(
                driver="ephemeral",
                source="shm",
                fstype="tmpfs",
                options=["noexec", "nosuid", "nodev", "mode=1777", f"size={shm_size or _DEFAULT_SHM}"],
                mount_point=GUEST_SHM,
            ),
        ],
    )
    for module in config.agent.kernel_modules:
        name, *parameters = module.split()
        request.kernel_modules.add(name=name, parameters=parameters)
    return request


def _shared_tree(config: Config) -> agent_pb2.Storage:
    storage = agent_pb2.Storage(source=shared_tree.TAG, mount_point=GUEST_SHARED + "/")
    if config.hypervisor.shared_fs == SHARE_VIRTIO_FS:
        storage.driver, storage.fstype = "virtio-fs", "virtiofs"
        storage.options.extend(shared_tree.VIRTIO_FS_OPTIONS)
    else:
        storage.driver = storage.fstype = "9p"
        storage.options.extend(shared_tree.options_9p(config.hypervisor.msize_9p))
    return storage


def root_options(container_id: str, spec: Spec, config: Config) -> tuple[str, ...]:
    """Mount options of the device for a root; () for a pod's own container, which only waits.

    Args:
        container_id: the container's.
        spec: the container's.
        config: the sandbox's.
    """
    kind, _ = classify(spec.get("annotations") or {}, container_id)
    if kind == ContainerType.SANDBOX:
        return ()
    return shared_tree.options_9p(config.hypervisor.msize_9p, cache="loose")


def hugepage_limits(spec: Spec) -> dict[str, int]:
    """Limits of a container's huge pages in bytes, by page size as in its spec ("2MB")."""
    resources: Mapping[str, Any] = (spec.get("linux") or {}).get("resources") or {}
    return {str(entry.get("pageSize")): int(entry.get("limit") or 0) for entry in resources.get("hugepageLimits") or ()}


def create_container_request(
    container_id: str,
    spec: Spec,
    files: ContainerPlan,
    config: Config,
    disks: Sequence[Attached] = (),
    groups: Sequence[AttachedGroup] = (),
    pids_of: str = "",
    root: Sequence[GuestStorage] = (),
) -> agent_pb2.CreateContainerRequest:
    """The agent's part of creating a container: the spec as the guest has to see it, storages and devices.

    Args:
        container_id: the container's.
        spec: the container's, with the devices that the guest can have.
        files: what of it is in the shared tree.
        config: the sandbox's.
        disks: that have been hot-plugged for it.
        groups: IOMMU groups whose devices have been hot-plugged for it.
        pids_of: the container whose pid namespace it joins.
        root: what its rootfs is made of, once the disks are mounted.
    """
    with_mounts: Spec = {**spec, "mounts": [*files.mounts]}
    guest_spec = edit.for_guest(
        with_mounts, rootfs=files.guest_rootfs, keep_seccomp=not config.runtime.disable_guest_seccomp
    )
    if pids_of:
        guest_spec = edit.join_pids(guest_spec, pids_of)
    return agent_pb2.CreateContainerRequest(
        container_id=container_id,
        exec_id=container_id,
        OCI=convert.to_proto(guest_spec),
        sandbox_pidns=edit.shares_pids(spec),
        storages=[
            *(_storage(disk, disk.disk.mount) for disk in disks if disk.disk.mount),
            *(
                agent_pb2.Storage(
                    driver=storage.driver,
                    source=storage.source,
                    fstype=storage.fstype,
                    options=storage.options,
                    mount_point=storage.point,
                    shared=storage.shared,
                    driver_options=[f"{_OVERLAY_CREATE}{path}" for path in storage.create],
                )
                for storage in (*root, *files.storages)
            ),
        ],
        devices=[
            agent_pb2.Device(id=disk.address, type=disk.kind, container_path=disk.disk.container_path)
            for disk in disks
            if not disk.disk.mount
        ]
        + [
            agent_pb2.Device(
                id=str(attached.wanted.group),
                type=attached.kind,
                container_path=attached.wanted.path,
                options=attached.options,
            )
            for attached in groups
        ],
    )


def _storage(disk: Attached, mount: DiskMount) -> agent_pb2.Storage:
    storage = agent_pb2.Storage(
        driver=disk.kind,
        source=disk.address,
        fstype=mount.fstype,
        options=mount.options,
        mount_point=mount.point,
    )
    if mount.group is not None:
        storage.fs_group.group_id = mount.group
        storage.fs_group.group_change_policy = types_pb2.OnRootMismatch if mount.on_root_mismatch else types_pb2.Always
    return storage
