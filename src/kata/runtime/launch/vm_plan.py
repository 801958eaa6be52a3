"""The plan of a sandbox's VM: a pure function of spec, configuration and host.

Imports neither asyncio nor protobuf: a shim makes this plan before anything else (`kata.runtime.launch.prelaunch`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kata.errors import ResourceExhausted
from kata.oci.annotations import pod_namespace
from kata.oci.spec import Spec, namespace_path
from kata.runtime.config.kinds import id_range
from kata.runtime.config.settings import MAX_ROOT_PORTS, Config
from kata.runtime.hypervisor.base import HUGE_PAGE_MIB, MIN_ROOT_PORTS, SHARE_9P, SHARE_VIRTIO_FS, VmPlan
from kata.runtime.hypervisor.devices import VfioDevice
from kata.runtime.launch import verity
from kata.runtime.launch.host import Host
from kata.runtime.ledger.processes import MARKER
from kata.runtime.resources.limits import sandbox_budget
from kata.runtime.resources.sizing import size_class

AGENT_CHANNEL = "kata.rpc"
#: In `template_domain`.
_NAMESPACE = "{namespace}"
#: The driver of disks that can be empty.
_BLK = "virtio-blk"
#: Empty disks for layers, beside one that is written to.
_EMPTY_LAYERS = 4
#: On the kernel command line: the agent takes a container through its life before it listens.
WARM_UP = "agent.warm_up"


def plan_vm(
    sandbox_id: str,
    directory: Path,
    spec: Spec,
    config: Config,
    host: Host,
    *,
    root_ports: int = 0,
    mmio_window: int = 0,
    devices: tuple[VfioDevice, ...] = (),
) -> VmPlan:
    """Plan the VM of a sandbox.

    Args:
        sandbox_id: whose VM.
        directory: the sandbox's state directory.
        spec: of the first container, or of the pod's sandbox; {} for a VM that has no sandbox yet.
        config: with the spec's annotations applied.
        host: where it is to run.
        root_ports: how many the spec's devices need.
        mmio_window: bytes of MMIO window behind each root port; 0 leaves the choice to the firmware.
        devices: that the VM boots with.

    Raises:
        InvalidArgument: a limit that no kernel would take, or a setting that no VM can have.
        FailedPrecondition: the image's parameters of dm-verity are not understood.
        ResourceExhausted: the host's pool of huge pages is too small.
    """
    size = sandbox_budget(sandbox_id, spec, config, host.size).size()
    hypervisor = config.hypervisor
    over_virtio_fs = hypervisor.shared_fs == SHARE_VIRTIO_FS
    grows = hypervisor.architecture.resizes and not config.runtime.static_sandbox_resource_mgmt
    return VmPlan(
        sandbox_id=sandbox_id,
        run_dir=directory,
        vmm=hypervisor.path,
        architecture=hypervisor.architecture,
        accelerator=host.accelerator,
        cpu_features=hypervisor.cpu_features,
        vcpus=size.vcpus,
        max_vcpus=hypervisor.max_vcpus(host.size.vcpus) if grows else 0,
        memory_mib=_memory_mib(size.memory_mib, config, host),
        max_memory_mib=hypervisor.max_memory(host.size.memory_mib) if grows else 0,
        memory_slots=hypervisor.memory_slots,
        huge_pages=hypervisor.enable_hugepages,
        kernel=host.kernel,
        initrd=host.initrd,
        image=host.image,
        kernel_params=(
            *(clock_params(host) if hypervisor.architecture.tells_tsc else ()),
            *((verity.kernel_param(host.verity),) if host.verity else ()),
            *agent_params(config, host.accelerator),
            *hypervisor.kernel_params.split(),
        ),
        share_dir=directory / "shared",
        root_dir=None if over_virtio_fs else directory / "root",
        # Of a VM that has no sandbox yet, nobody has decided it.
        share_fs=SHARE_VIRTIO_FS if over_virtio_fs else SHARE_9P,
        programs=host.programs,
        virtiofsd=Path(hypervisor.virtio_fs_daemon) if over_virtio_fs and hypervisor.virtio_fs_daemon else None,
        virtiofsd_cache={"none": "never"}.get(hypervisor.virtio_fs_cache, hypervisor.virtio_fs_cache),
        virtiofsd_args=hypervisor.virtio_fs_extra_args,
        channels=(AGENT_CHANNEL,),
        iommu=hypervisor.enable_iommu or config.runtime.vfio_mode == "vfio",
        root_ports=min(max(MIN_ROOT_PORTS, hypervisor.pcie_root_port, root_ports), MAX_ROOT_PORTS)
        if hypervisor.architecture.bridges
        else MAX_ROOT_PORTS,
        mmio_window=mmio_window,
        devices=devices,
        empty_disks=empty_disks(config),
        seccomp=bool(hypervisor.seccompsandbox),
        jail_uids=id_range(hypervisor.jail_uid_range),
        debug=hypervisor.enable_debug,
        environment=((MARKER, str(directory)),),
        network=namespace_path(spec, "network"),
        template_domain=template_domain(config, spec),
    )


def template_domain(config: Config, spec: Spec) -> str:
    """The domain with which a sandbox shares its template; "" if the configuration makes no difference."""
    return config.factory.template_domain.replace(_NAMESPACE, pod_namespace(spec.get("annotations") or {}))


def _memory_mib(wanted: int, config: Config, host: Host) -> int:
    """The memory that a VM gets for so many MiB.

    Raises:
        ResourceExhausted: the host's pool of huge pages is too small.
    """
    if not config.hypervisor.enable_hugepages:
        return size_class(wanted) if config.uses_templates else wanted
    pages = -(-wanted // HUGE_PAGE_MIB)
    if pages > host.free_huge_pages:
        raise ResourceExhausted(
            f"the VM needs {pages} huge pages of {HUGE_PAGE_MIB} MiB; {host.free_huge_pages} of this host's are free",
            hint="reserve more (sysctl vm.nr_hugepages), or set enable_hugepages to false",
        )
    return pages * HUGE_PAGE_MIB


def empty_disks(config: Config) -> tuple[bool, ...]:
    """The disks that a VM has before it is known what is on them, where roots are layers on disks.

    A template has them already, so that its VMs need not find each one when it is plugged. Of an image with more
    layers, the others are plugged.
    """
    hypervisor, runtime = config.hypervisor, config.runtime
    on_disks = runtime.rootfs_layers == "disks" and not hypervisor.disable_block_device_use
    if not on_disks or hypervisor.block_device_driver != _BLK:
        return ()
    # The same for all, wherever they write: what has one template shares its pages.
    return (*(True,) * _EMPTY_LAYERS, False)


def with_layers(config: Config) -> Config:
    """The configuration of a VM whose root is of layers, as that of `kata run IMAGE`, whatever containerd's are."""
    return replace(config, runtime=replace(config.runtime, rootfs_layers="disks"))


def as_template(plan: VmPlan) -> VmPlan:
    """The VM that is saved as the template from which VMs of `plan` are restored."""
    return replace(plan, kernel_params=(*plan.kernel_params, WARM_UP), network="")


def clock_params(host: Host) -> tuple[str, ...]:
    """What the guest's kernel is told of its clock.

    An emulated guest has the host's time-stamp counter. Where the host is busy, the guest's kernel was seen to measure
    it against the emulated timers as an eighth of what it is, and the guest's time then ran that much too fast.
    """
    return (f"tsc_early_khz={host.tsc_mhz * 1000}",) if host.accelerator == "tcg" and host.tsc_mhz else ()


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
