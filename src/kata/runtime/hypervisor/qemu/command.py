"""QEMU's command line as a pure function of the plan.

Every device has a fixed PCI address, so that VMs of equal plans are alike and one can be the other's template:

    0x2        root disk           0x4 … 0x7   PCIe root ports, for hot-plug
    0x3        virtio-serial       0x9, 0xa    PCI bridges, for hot-plug
    0x8        random numbers          0x1f … of bridge 0xa: empty disks
    0x10       9p                      0xf        9p, for a root

References: qemu-system(1); QEMU's docs/pcie.txt, docs/devel/migration.rst (x-ignore-shared).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kata.protocols.shared_tree import ROOT_TAG, TAG
from kata.runtime.hypervisor.base import HUGE_PAGE_MIB, MAX_CHANNELS, SHARE_VIRTIO_FS, VmPlan
from kata.runtime.hypervisor.kernel_params import kernel_command_line
from kata.runtime.hypervisor.qemu import slots

#: Keys of `fds` besides the names of channels, which cannot contain a colon.
QMP_FD = ":qmp"
CONSOLE_FD = ":console"
#: A file that is the guest's memory; without it, the memory is anonymous.
MEMORY_FD = ":memory"
#: The state of a saved VM, to be restored; MEMORY_FD is then that VM's memory, which this one maps privately.
STATE_FD = ":state"
#: The first version of QEMU (major, minor) that maps memory privately from a file that it has open for reading only. It
#: also saves to and restores from a file ("file:"), for which a descriptor ("fd:") is deprecated since 9.1.
MAPS_READ_ONLY_SINCE = (8, 2)
#: The set of descriptors that holds the state's file; hot-plug numbers its own from 1 on.
STATE_FDSET = 0
#: A second QMP monitor, on which the restore is requested before a client has connected to the first.
RESTORE_FD = ":restore"
#: The connection to the program that serves the shared tree; without it, QEMU serves 9p by itself.
SHARE_FD = ":share"
#: The same for the root of a container.
ROOT_FD = ":root"
#: QEMU's name of the connection to the daemon that serves virtio-fs.
SHARE_CHARDEV = "share"

#: Bytes that an empty disk seems to have: more than what is put into it, at whose end reading ends.
_EMPTY_DISK_SIZE = 1 << 44

#: Of the host's CPU, what a guest gets otherwise. Later features win, so a configuration can undo each:
#: migratable    without what another VM could not go on with, in particular the invariant time-stamp counter: QEMU does
#:               not save a VM that has it, and so there would be no template. The guest's clock is kvm-clock, then.
#: pmu           no performance counters: they show what others do on a CPU, and a guest can reach KVM's code for them.
#: svm, vmx      no virtualization in the guest: its image has no use for it, and KVM's code for it is large.
_KVM_CPU = "migratable=on,pmu=off,svm=off,vmx=off"

#: MiB of translated code that TCG caches. QEMU's default is 1 GiB, which a busy guest fills.
_TRANSLATION_CACHE_MIB = 256


def command_line(plan: VmPlan, fds: Mapping[str, int], *, read_only_memory: bool = False) -> list[str]:
    """The arguments that run the plan's VM.

    Args:
        plan: the VM.
        fds: numbers of the descriptors that QEMU inherits: connected stream sockets for QMP_FD, CONSOLE_FD and each
            channel, and for SHARE_FD if another program serves the shared tree; files for MEMORY_FD (to save the VM
            later, or to share its memory) and STATE_FD (to restore a saved one, with a socket for RESTORE_FD).
        read_only_memory: open the file of a saved VM's memory for reading only, and have the state's file in
            STATE_FDSET: for QEMU since MAPS_READ_ONLY_SINCE.

    Raises:
        InvalidArgument: the kernel command line is too long.
    """
    max_vcpus = plan.max_vcpus or plan.vcpus
    options: list[tuple[str, ...]] = [
        ("-name", f"sandbox-{plan.sandbox_id},debug-threads=on"),
        ("-nodefaults",),
        ("-no-user-config",),
        ("-no-reboot",),
        # The firmware leaves the disks alone. For each that it may boot from it takes memory at the top, where QEMU has
        # put the initrd, with room for two: with more, a disk's queue was written into the initrd's last module
        # (SeaBIOS' BUILD_MAX_HIGHTABLE; acpi_data_size in QEMU's x86.c).
        ("-boot", "strict=on"),
        ("-display", "none"),
        ("-machine", _machine(plan) + (",memory-backend=memory" if MEMORY_FD in fds or plan.huge_pages else "")),
        *_cpu(plan),
        *_iommu(plan),
        ("-smp", f"cpus={plan.vcpus},maxcpus={max_vcpus},sockets={max_vcpus},cores=1,threads=1"),
        ("-m", _memory_size(plan)),
        *_memory(plan, fds, read_only_memory),
        ("-rtc", "base=utc,clock=host"),
        *_origin(plan, fds, read_only_memory),
        ("-chardev", f"socket,id=qmp,fd={fds[QMP_FD]}"),
        ("-mon", "chardev=qmp,mode=control"),
        ("-chardev", f"socket,id=console,fd={fds[CONSOLE_FD]}"),
        ("-serial", "chardev:console"),
        *_root_disk(plan),
        *_channels(plan, fds),
        *slots.options(plan),
        *_devices(plan),
        *_empty_disks(plan),
        ("-object", "rng-builtin,id=rng"),
        ("-device", "virtio-rng-pci,id=rng0,rng=rng,bus=pcie.0,addr=0x8"),
        *_generation_id(plan),
        *_share(plan, fds),
    ]
    if plan.seccomp:
        options.append(("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"))
    return [str(plan.vmm), *(word for option in options for word in option)]


def _memory_size(plan: VmPlan) -> str:
    size = f"size={plan.memory_mib}M"
    if plan.memory_slots and plan.max_memory_mib > plan.memory_mib:
        size += f",slots={plan.memory_slots},maxmem={plan.max_memory_mib}M"
    return size


def _memory(plan: VmPlan, fds: Mapping[str, int], read_only: bool) -> list[tuple[str, ...]]:
    if plan.huge_pages:
        # Taken from the host's pool at once (prealloc): a page that is missing later would be a SIGBUS.
        share = "on" if plan.shares_memory else "off"
        options = f"hugetlb=on,hugetlbsize={HUGE_PAGE_MIB}M,prealloc=on,share={share}"
        return [("-object", f"memory-backend-memfd,id=memory,size={plan.memory_mib}M,{options}")]
    if MEMORY_FD not in fds:
        return []
    share = "share=on"
    if STATE_FD in fds and not plan.shares_memory:
        # rom=off: what the guest writes goes to copies of the file's pages.
        share = "share=off,readonly=on,rom=off" if read_only else "share=off"
    path = f"/proc/self/fd/{fds[MEMORY_FD]}"
    return [("-object", f"memory-backend-file,id=memory,size={plan.memory_mib}M,mem-path={path},{share}")]


def _origin(plan: VmPlan, fds: Mapping[str, int], from_file: bool) -> list[tuple[str, ...]]:
    """What the VM starts from: a kernel, or the state of a saved VM."""
    if STATE_FD in fds:
        # Deferred, because the capability x-ignore-shared has to be set first, by QMP.
        return [
            *([("-add-fd", f"fd={fds[STATE_FD]},set={STATE_FDSET}")] if from_file else []),
            ("-incoming", "defer"),
            ("-chardev", f"socket,id=restore,fd={fds[RESTORE_FD]}"),
            ("-mon", "chardev=restore,mode=control"),
        ]
    return [("-kernel", str(plan.kernel)), ("-initrd", str(plan.initrd)), ("-append", kernel_command_line(plan))]


def _cpu(plan: VmPlan) -> list[tuple[str, ...]]:
    features = f",{plan.cpu_features}" if plan.cpu_features else ""
    if plan.accelerator == "kvm":
        return [
            # Interrupt remapping needs the I/O APIC in QEMU, not in the kernel.
            ("-accel", f"kvm,kernel-irqchip={'split' if plan.iommu else 'on'}"),
            ("-cpu", f"host,{_KVM_CPU}{features}"),
            # Linux does not need the timer ticks that it missed while the VM was paused.
            ("-global", "kvm-pit.lost_tick_policy=discard"),
            # The host's memory and CPUs are shared: a guest's clean pages are its siblings', and one that is idle gives
            # its CPU away. With cpu-pm it would sleep on it, which the host and its cgroups take for work.
            ("-overcommit", "mem-lock=off,cpu-pm=off"),
        ]
    return [
        ("-accel", f"tcg,thread=multi,tb-size={_TRANSLATION_CACHE_MIB}"),
        ("-cpu", f"{plan.architecture.tcg_cpu}{features}"),
    ]


def _machine(plan: VmPlan) -> str:
    return f"{plan.architecture.machine_type}{plan.architecture.machine_options}"


def _generation_id(plan: VmPlan) -> list[tuple[str, ...]]:
    # Tells the guest's kernel that it was cloned, so that it reseeds its random number generator; where there is none,
    # what the agent gets from the host after a restore has to do.
    return [("-device", "vmgenid,id=vmgenid,guid=auto")] if plan.architecture.generation_id else []


def _iommu(plan: VmPlan) -> list[tuple[str, ...]]:
    # caching-mode: the guest reports each mapping, which QEMU applies to the VFIO devices behind the IOMMU.
    return [("-device", "intel-iommu,intremap=on,caching-mode=on")] if plan.iommu else []


def _root_disk(plan: VmPlan) -> list[tuple[str, ...]]:
    if plan.image is None:
        return []
    return [
        ("-blockdev", f"driver=file,node-name=root-file,read-only=on,filename={_escape(str(plan.image))}"),
        ("-blockdev", "driver=raw,node-name=root,read-only=on,file=root-file"),
        ("-device", "virtio-blk-pci,id=root-disk,drive=root,bus=pcie.0,addr=0x2"),
    ]


def _channels(plan: VmPlan, fds: Mapping[str, int]) -> list[tuple[str, ...]]:
    # Port 0 of the device is reserved for a console.
    options: list[tuple[str, ...]] = [
        ("-device", f"virtio-serial-pci,id=serial0,max_ports={MAX_CHANNELS + 1},bus=pcie.0,addr=0x3")
    ]
    for number, name in enumerate(plan.channels, start=1):
        options += [
            ("-chardev", f"socket,id=channel{number},fd={fds[name]}"),
            (
                "-device",
                f"virtserialport,id=port{number},bus=serial0.0,nr={number},chardev=channel{number},name={name}",
            ),
        ]
    return options


def _share(plan: VmPlan, fds: Mapping[str, int]) -> list[tuple[str, ...]]:
    if plan.share_dir is None:
        return []
    if plan.share_fs == SHARE_VIRTIO_FS:
        # Its device cannot be saved, so it is hot-plugged when the VM runs.
        return [("-chardev", f"socket,id={SHARE_CHARDEV},fd={fds[SHARE_FD]}")]
    options = _over_9p("share", plan.share_dir, fds.get(SHARE_FD), f"mount_tag={TAG},bus=pcie.0,addr=0x10")
    if plan.root_dir is not None:
        options += _over_9p("root", plan.root_dir, fds.get(ROOT_FD), f"mount_tag={ROOT_TAG},bus=pcie.0,addr=0xf")
    return options


def _over_9p(name: str, directory: Path, helper: int | None, device: str) -> list[tuple[str, ...]]:
    """A directory over 9p, served by a helper at the other end of a connection, or by QEMU."""
    if helper is not None:
        server = f"proxy,id={name},sock_fd={helper}"
    else:
        # multidevs: the tree spans many file systems, whose inode numbers must not collide in the guest.
        server = f"local,id={name},path={_escape(str(directory))},security_model=none,multidevs=remap"
    return [("-fsdev", server), ("-device", f"virtio-9p-pci,id={name}0,fsdev={name},{device}")]


def _devices(plan: VmPlan) -> list[tuple[str, ...]]:
    return [
        ("-device", f"vfio-pci,id={device.id},host={device.host},bus={slots.root_port(index).bus},addr=0x0")
        for index, device in enumerate(plan.devices)
    ]


def _empty_disks(plan: VmPlan) -> list[tuple[str, ...]]:
    options: list[tuple[str, ...]] = []
    for index, read_only in enumerate(plan.empty_disks):
        name, slot = empty_disk_name(index), slots.empty_disk(plan, index)
        access = "on" if read_only else "off"
        null = f"driver=null-co,node-name={name},read-only={access},size={_EMPTY_DISK_SIZE},read-zeroes=on"
        place = f"bus={slot.bus},addr={slot.address}"
        disk = f"virtio-blk-pci,id={name},drive={name},{place},disable-legacy=on,werror=report"
        options += [("-blockdev", null), ("-device", disk)]
    return options


def empty_disk_name(index: int) -> str:
    """The name of an empty disk's device, and of its block node as long as it is empty."""
    return f"empty{index}"


def _escape(value: str) -> str:
    """In QEMU's option syntax a comma ends a value; two commas stand for one."""
    return value.replace(",", ",,")
