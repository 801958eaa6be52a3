"""A sandbox's virtual machine, decided from spec and configuration without touching anything.

Loads neither asyncio nor protobuf: a shim decides this before anything else (`kata.runtime.launch.prelaunch`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from kata.oci.spec import Spec
from kata.runtime.config.settings import Config, HypervisorConfig
from kata.runtime.hypervisor.base import ROOT_PORTS, ROOT_PORTS_MAX, SHARE_VIRTIO_FS, VmPlan
from kata.runtime.hypervisor.devices import VfioDevice
from kata.runtime.hypervisor.qemu.share import find_helper
from kata.runtime.ledger.processes import MARKER
from kata.runtime.resources.limits import host_size, sandbox_budget
from kata.runtime.resources.sizing import size_class

AGENT_CHANNEL = "kata.rpc"
#: On the kernel command line: the agent goes through a container's life before it listens.
WARM_UP = "agent.warm_up"


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
    size = sandbox_budget(sandbox_id, spec, config, host).size()
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
