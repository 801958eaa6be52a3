"""A sandbox's virtual machine, decided from spec and configuration without touching anything.

Loads neither asyncio nor protobuf: a shim decides this before anything else (`kata.runtime.launch.prelaunch`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kata.errors import InvalidArgument
from kata.oci.annotations import ContainerType, classify
from kata.oci.spec import Spec
from kata.runtime.config.settings import Config, HypervisorConfig
from kata.runtime.hypervisor.base import ROOT_PORTS, ROOT_PORTS_MAX, SHARE_VIRTIO_FS, VmPlan
from kata.runtime.hypervisor.devices import VfioDevice
from kata.runtime.hypervisor.qemu.share import find_helper
from kata.runtime.ledger.processes import MARKER
from kata.runtime.resources.sizing import Budget, Demand, Size, demand

AGENT_CHANNEL = "kata.rpc"
#: On the kernel command line: the agent goes through a container's life before it listens.
WARM_UP = "agent.warm_up"

_MIB = 1 << 20

#: What containerd's CRI plugin says on the sandbox about the pod's containers, known before any of them exists.
_CRI_MEMORY = "io.kubernetes.cri.sandbox-memory"
_CRI_CPU_QUOTA = "io.kubernetes.cri.sandbox-cpu-quota"
_CRI_CPU_PERIOD = "io.kubernetes.cri.sandbox-cpu-period"


def announced(spec: Spec, host: Size) -> Demand:
    """The sums of the limits of a pod's containers, which CRI writes on its sandbox.

    Raises:
        InvalidArgument: an annotation is no number, or not one that a limit can be.
    """
    annotations: Mapping[str, str] = spec.get("annotations") or {}
    return demand(
        {
            "memory": {"limit": _number(annotations, _CRI_MEMORY)},
            "cpu": {"quota": _number(annotations, _CRI_CPU_QUOTA), "period": _number(annotations, _CRI_CPU_PERIOD)},
        },
        host,
    )


def budget(sandbox_id: str, spec: Spec, config: Config, host: Size) -> Budget:
    """What a sandbox's containers may use, when its first is about to come."""
    made = Budget(config, host, announced(spec, host))
    count(made, sandbox_id, spec)
    return made


def count(budget: Budget, container_id: str, spec: Spec) -> None:
    """Count a container in, unless it is a pod's sandbox, which only holds the pod together. Raises as `Budget.set`."""
    annotations = {name: str(value) for name, value in (spec.get("annotations") or {}).items()}
    if classify(annotations, container_id)[0] != ContainerType.SANDBOX:
        budget.set(container_id, (spec.get("linux") or {}).get("resources"))


def host_size() -> Size:
    """What this host has."""
    return Size(os.cpu_count() or 1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MIB)


def size_class(memory_mib: int) -> int:
    """The next of four sizes for each power of two, so that few templates serve many limits.

    What a container may use is still its limit, and what the guest does not touch takes no memory of the host.
    """
    step = max(1, 1 << (memory_mib.bit_length() - 3))
    return -(-memory_mib // step) * step


def plan_vm(
    sandbox_id: str,
    directory: Path,
    spec: Spec,
    config: Config,
    *,
    accelerator: str,
    root_ports: int = 0,
    mmio_window: int = 0,
    devices: tuple[VfioDevice, ...] = (),
) -> VmPlan:
    """The virtual machine of a sandbox.

    Args:
        root_ports: that the spec's devices need.
        mmio_window, devices: see VmPlan.
    """
    host = host_size()
    size = budget(sandbox_id, spec, config, host).size()
    hypervisor = config.hypervisor
    return VmPlan(
        sandbox_id=sandbox_id,
        run_dir=directory,
        qemu=hypervisor.path,
        machine_type=hypervisor.machine_type,
        accelerator=accelerator,
        cpu_features=hypervisor.cpu_features,
        vcpus=size.vcpus,
        max_vcpus=0 if config.runtime.static_sandbox_resource_mgmt else hypervisor.max_vcpus(host.vcpus),
        memory_mib=size_class(size.memory_mib) if config.factory.enable_template else size.memory_mib,
        max_memory_mib=0 if config.runtime.static_sandbox_resource_mgmt else hypervisor.max_memory(host.memory_mib),
        memory_slots=hypervisor.memory_slots,
        # Resolved: the image that is current now stays this machine's, whatever is built meanwhile.
        kernel=hypervisor.kernel.resolve(),
        initrd=hypervisor.initrd.resolve(),
        image=hypervisor.image.resolve(),
        kernel_params=(*agent_params(config, accelerator), *hypervisor.kernel_params.split()),
        share_dir=directory / "shared",
        share_fs=hypervisor.shared_fs,
        **_share_helper(hypervisor),
        channels=(AGENT_CHANNEL,),
        iommu=hypervisor.enable_iommu or config.runtime.vfio_mode == "vfio",
        root_ports=min(max(ROOT_PORTS, hypervisor.pcie_root_port, root_ports), ROOT_PORTS_MAX),
        mmio_window=mmio_window,
        devices=devices,
        seccomp=bool(hypervisor.seccompsandbox),
        debug=hypervisor.enable_debug,
        environment=((MARKER, str(directory)),),
    )


def _share_helper(hypervisor: HypervisorConfig) -> dict[str, Any]:
    """Who serves the shared tree, as fields of the plan."""
    if hypervisor.shared_fs != SHARE_VIRTIO_FS:
        return {"share_helper": find_helper()}
    cache = {"never": "none"}.get(hypervisor.virtio_fs_cache, hypervisor.virtio_fs_cache)
    return {
        "share_helper": hypervisor.virtio_fs_daemon,
        "share_options": ("-o", f"cache={cache}", *hypervisor.virtio_fs_extra_args),
    }


def as_template(plan: VmPlan) -> VmPlan:
    """The machine that is saved for machines of `plan` to go on from."""
    return replace(plan, kernel_params=(*plan.kernel_params, WARM_UP))


def agent_params(config: Config, accelerator: str) -> tuple[str, ...]:
    """What the agent learns from the kernel command line."""
    agent = config.agent
    params = [f"agent.server_addr=virtio-serial://{AGENT_CHANNEL}"]
    if accelerator == "tcg":
        params.append("agent.emulated")
    if agent.enable_debug:
        params.append("agent.log=debug")
    if agent.debug_console_enabled:
        params.append("agent.debug_console")
    if agent.container_pipe_size:
        params.append(f"agent.container_pipe_size={agent.container_pipe_size}")
    return tuple(params)


def _number(annotations: Mapping[str, str], name: str) -> int:
    text = annotations.get(name, "0")
    try:
        return max(0, int(text))
    except ValueError:
        raise InvalidArgument(f"annotation {name}: {text!r} is not a number") from None
