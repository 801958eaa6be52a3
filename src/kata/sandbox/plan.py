"""What a sandbox and its containers will be, decided from spec and configuration without touching anything."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata.config.settings import Config
from kata.errors import InvalidArgument
from kata.hypervisor.base import VmPlan
from kata.hypervisor.qemu.share import find_helper
from kata.oci import convert, edit
from kata.oci.spec import Spec
from kata.protocols import agent_pb2
from kata.sandbox.ledger import MARKER
from kata.storage.share import GUEST_SHARED, GUEST_SHM, ContainerPlan

AGENT_CHANNEL = "kata.rpc"

_MIB = 1 << 20
_DEFAULT_SHM = "65536k"
_HOSTNAME_MAX = 64

#: What containerd's CRI plugin says on the sandbox about the pod's containers, known before any of them exists.
_CRI_MEMORY = "io.kubernetes.cri.sandbox-memory"
_CRI_CPU_QUOTA = "io.kubernetes.cri.sandbox-cpu-quota"
_CRI_CPU_PERIOD = "io.kubernetes.cri.sandbox-cpu-period"


@dataclass(frozen=True)
class Size:
    """Processors and memory of a machine, virtual or not."""

    vcpus: int
    memory_mib: int


def vm_size(spec: Spec, config: Config, host: Size) -> Size:
    """The VM has to hold the guest's own needs (the configured defaults) and on top of them what the limits allow.

    A limit of the spec itself counts, and so do the sums that CRI writes on a pod's sandbox.

    Args:
        host: what the host has; a machine never gets more.

    Raises:
        InvalidArgument: a limit is not a number.
    """
    linux: Mapping[str, Any] = spec.get("linux") or {}
    resources: Mapping[str, Any] = linux.get("resources") or {}
    annotations: Mapping[str, str] = spec.get("annotations") or {}
    memory = _number(annotations, _CRI_MEMORY) or _positive(resources.get("memory"), "limit")
    quota = _number(annotations, _CRI_CPU_QUOTA) or _positive(resources.get("cpu"), "quota")
    period = _number(annotations, _CRI_CPU_PERIOD) or _positive(resources.get("cpu"), "period") or 100_000
    hypervisor = config.hypervisor
    vcpus = hypervisor.vcpus(host.vcpus) + (math.ceil(quota / period) if quota else 0)
    memory_mib = hypervisor.default_memory + math.ceil(memory / _MIB)
    # Managers write numbers near 2^63 for "no limit".
    most = max(hypervisor.default_memory, host.memory_mib)
    return Size(min(vcpus, hypervisor.max_vcpus(host.vcpus)), min(memory_mib, most))


def host_size() -> Size:
    """What this host has."""
    return Size(os.cpu_count() or 1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MIB)


def size_class(memory_mib: int) -> int:
    """The next of four sizes for each power of two, so that few templates serve many limits.

    What a container may use is still its limit, and what the guest does not touch takes no memory of the host.
    """
    step = max(1, 1 << (memory_mib.bit_length() - 3))
    return -(-memory_mib // step) * step


def refuse_host_network(container_id: str, spec: Spec) -> None:
    """Raise InvalidArgument if the container is to be in the host's network namespace."""
    namespaces = (spec.get("linux") or {}).get("namespaces") or ()
    if "network" not in {entry.get("type") for entry in namespaces}:
        raise InvalidArgument(
            f"container {container_id} asks for the host's network, which a virtual machine cannot have",
            hint="run it without the host network",
        )


def _number(annotations: Mapping[str, str], name: str) -> int:
    text = annotations.get(name, "0")
    try:
        return max(0, int(text))
    except ValueError:
        raise InvalidArgument(f"annotation {name}: {text!r} is not a number") from None


def _positive(section: Mapping[str, Any] | None, key: str) -> int:
    value = (section or {}).get(key)
    return value if isinstance(value, int) and value > 0 else 0


def plan_vm(sandbox_id: str, directory: Path, spec: Spec, config: Config, *, accelerator: str) -> VmPlan:
    """The virtual machine of a sandbox."""
    size = vm_size(spec, config, host_size())
    hypervisor = config.hypervisor
    return VmPlan(
        sandbox_id=sandbox_id,
        run_dir=directory,
        qemu=hypervisor.path,
        machine_type=hypervisor.machine_type,
        accelerator=accelerator,
        cpu_features=hypervisor.cpu_features,
        vcpus=size.vcpus,
        memory_mib=size_class(size.memory_mib) if config.factory.enable_template else size.memory_mib,
        # Resolved: the image that is current now stays this machine's, whatever is built meanwhile.
        kernel=hypervisor.kernel.resolve(),
        initrd=hypervisor.initrd.resolve(),
        image=hypervisor.image.resolve(),
        kernel_params=(*agent_params(config), *hypervisor.kernel_params.split()),
        share_dir=directory / "shared",
        share_helper=find_helper(),
        channels=(AGENT_CHANNEL,),
        seccomp=bool(hypervisor.seccompsandbox),
        debug=hypervisor.enable_debug,
        environment=((MARKER, str(directory)),),
    )


def agent_params(config: Config) -> tuple[str, ...]:
    """What the agent learns from the kernel command line."""
    agent = config.agent
    params = [f"agent.server_addr=virtio-serial://{AGENT_CHANNEL}"]
    if agent.enable_debug:
        params.append("agent.log=debug")
    if agent.debug_console_enabled:
        params.append("agent.debug_console")
    if agent.container_pipe_size:
        params.append(f"agent.container_pipe_size={agent.container_pipe_size}")
    return tuple(params)


def create_sandbox_request(sandbox_id: str, spec: Spec, config: Config) -> agent_pb2.CreateSandboxRequest:
    """The agent's part of making a sandbox: host name, shared tree, /dev/shm, kernel modules."""
    request = agent_pb2.CreateSandboxRequest(
        hostname=str(spec.get("hostname") or sandbox_id)[:_HOSTNAME_MAX],
        sandbox_id=sandbox_id,
        storages=[
            agent_pb2.Storage(
                driver="9p",
                source="kataShared",
                fstype="9p",
                options=[
                    "trans=virtio",
                    "version=9p2000.L",
                    f"cache={_CACHE_9P}",
                    "nodev",
                    f"msize={config.hypervisor.msize_9p}",
                ],
                mount_point=GUEST_SHARED + "/",
            ),
            agent_pb2.Storage(
                driver="ephemeral",
                source="shm",
                fstype="tmpfs",
                options=["noexec", "nosuid", "nodev", "mode=1777", f"size={_shm_size(spec.get('mounts') or ())}"],
                mount_point=GUEST_SHM,
            ),
        ],
    )
    for module in config.agent.kernel_modules:
        name, *parameters = module.split()
        request.kernel_modules.add(name=name, parameters=parameters)
    return request


#: Kata's choice: files can be mapped shared and writable, everything else goes straight to the host.
_CACHE_9P = "mmap"


def _shm_size(mounts: Sequence[Mapping[str, Any]]) -> str:
    for mount in mounts:
        if mount.get("destination") == "/dev/shm" and mount.get("type") == "tmpfs":
            for option in mount.get("options", ()):
                name, _, value = str(option).partition("=")
                if name == "size" and value:
                    return value
    return _DEFAULT_SHM


def create_container_request(
    container_id: str, spec: Spec, files: ContainerPlan, config: Config
) -> agent_pb2.CreateContainerRequest:
    """The agent's part of making a container: the spec as the guest has to see it."""
    with_mounts: Spec = {**spec, "mounts": [*files.mounts]}
    guest_spec = edit.for_guest(
        with_mounts, rootfs=files.guest_rootfs, keep_seccomp=not config.runtime.disable_guest_seccomp
    )
    return agent_pb2.CreateContainerRequest(
        container_id=container_id,
        exec_id=container_id,
        OCI=convert.to_proto(guest_spec),
        sandbox_pidns=edit.shares_pids(spec),
    )
