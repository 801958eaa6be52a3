"""The settings, once: the fields of these classes are the TOML keys, with type, default, check and documentation.

Names, sections and meanings are Kata Containers'; a setting of our own says so. A default that differs from Kata's says
why. Everything else about settings (reading, annotations, documentation, the shipped file) is derived from this table.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kata.runtime.config.kinds import FilePath, Flag, Integer, Kind, ListOf, Regex, Text

IMAGES = Path("/var/lib/kata/images")
TEMPLATES = Path("/var/lib/kata/templates")
ANNOTATION_PREFIX = "io.katacontainers.config."

_DAY = 86400
_SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_MAX_RATE = 1 << 50
#: The room on the root bus.
_MAX_ROOT_PORTS = 18
_MAX_VCPUS = 240  # Kata's limit for x86-64; KVM's is higher, the interrupt controller's default is 255.


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        key: the TOML key and the name of the field.
        annotation: the short name by which a pod may set it, or None.
        valid: the key of the list of globs that a path from an annotation must match, or None.
    """

    key: str
    kind: Kind
    default: object
    doc: str
    annotation: str | None
    valid: str | None


def _row(kind: Kind, doc: str, *, annotation: str | None = None, valid: str | None = None) -> dict[str, Any]:
    return {"kind": kind, "doc": doc, "annotation": annotation, "valid": valid}


@dataclass(frozen=True)
class HypervisorConfig:
    """[hypervisor.qemu]: the virtual machine."""

    path: Path = field(
        default=Path("/usr/bin/qemu-system-x86_64"),
        metadata=_row(
            FilePath(),
            "The QEMU to run.",
            annotation="path",
            valid="valid_hypervisor_paths",
        ),
    )
    valid_hypervisor_paths: tuple[Path, ...] = field(
        default=(Path("/usr/bin/qemu-system-x86_64"),),
        metadata=_row(
            ListOf(FilePath(glob=True), "globs"),
            "What the annotation `path` may name.",
        ),
    )
    kernel: Path = field(
        default=IMAGES / "current/vmlinux",
        metadata=_row(
            FilePath(),
            "The guest kernel, an uncompressed ELF file: unpacking a compressed one costs seconds without KVM.",
            annotation="kernel",
            valid="valid_guest_paths",
        ),
    )
    initrd: Path = field(
        default=IMAGES / "current/initrd",
        metadata=_row(
            FilePath(),
            "The initial file system that loads modules and switches to `image`. Unlike in Kata it comes with an "
            "image, not in place of one.",
            annotation="initrd",
            valid="valid_guest_paths",
        ),
    )
    image: Path = field(
        default=IMAGES / "current/root.erofs",
        metadata=_row(
            FilePath(),
            "The guest's root file system, attached read-only.",
            annotation="image",
            valid="valid_guest_paths",
        ),
    )
    valid_guest_paths: tuple[Path, ...] = field(
        default=(IMAGES / "*/*",),
        metadata=_row(
            ListOf(FilePath(glob=True), "globs"),
            "What the annotations `kernel`, `initrd` and `image` may name. (Not in Kata.)",
        ),
    )
    machine_type: str = field(
        default="q35",
        metadata=_row(
            Text(choices=("q35",)),
            "The machine that QEMU emulates.",
            annotation="machine_type",
        ),
    )
    accelerator: str = field(
        default="auto",
        metadata=_row(
            Text(choices=("auto", "kvm", "tcg")),
            "How the guest's instructions run: `kvm` uses the processor, `tcg` emulates it, `auto` takes KVM where it "
            "really runs a guest. Emulation is slow and, by QEMU's own security policy, no security boundary. "
            "(Not in Kata.)",
        ),
    )
    require_kvm: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Refuse to start a sandbox without KVM. Set it where the virtual machine has to keep tenants apart. "
            "(Not in Kata.)",
        ),
    )
    kernel_params: str = field(
        default="",
        metadata=_row(
            Text(),
            "Added to the guest's kernel command line, last, so that it wins.",
            annotation="kernel_params",
        ),
    )
    default_vcpus: int = field(
        default=1,
        metadata=_row(
            Integer(-1, _MAX_VCPUS, round_up=True),
            "Virtual CPUs of a sandbox before its containers' limits are added; 0 means 1, -1 means as many as the "
            "host has. More than the host has is cut to that.",
            annotation="default_vcpus",
        ),
    )
    default_maxvcpus: int = field(
        default=0,
        metadata=_row(
            Integer(0, _MAX_VCPUS),
            "The most virtual CPUs that a sandbox may get; 0 means as many as the host has.",
            annotation="default_max_vcpus",
        ),
    )
    default_memory: int = field(
        default=2048,
        metadata=_row(
            Integer(128, 16 * 1024 * 1024, unit="MiB"),
            "Memory of a sandbox before its containers' limits are added. The host gives a page when the guest first "
            "touches it, so a large value costs little until it is used: 2048 takes 26 MB more than 512 to boot.",
            annotation="default_memory",
        ),
    )
    default_maxmemory: int = field(
        default=0,
        metadata=_row(
            Integer(0, 16 * 1024 * 1024, unit="MiB"),
            "The most memory that a sandbox may get; 0 means as much as the host has.",
        ),
    )
    memory_slots: int = field(
        default=10,
        metadata=_row(
            Integer(0, 255),
            "How many times memory can be added to a running sandbox. Taken away again it frees its slot.",
            annotation="memory_slots",
        ),
    )
    cpu_features: str = field(
        default="",
        metadata=_row(
            Text(
                pattern=r"([+-]?[A-Za-z0-9_.-]+(=[A-Za-z0-9_.-]+)?(,[+-]?[A-Za-z0-9_.-]+(=[A-Za-z0-9_.-]+)?)*)?",
                description='CPU features separated by commas, such as "pmu=off,-avx512f"',
            ),
            "Added to the CPU model on QEMU's command line.",
            annotation="cpu_features",
        ),
    )
    shared_fs: str = field(
        default="virtio-9p",
        metadata=_row(
            Text(choices=("virtio-9p", "virtio-fs")),
            "How the sandbox's directory on the host is shared with the guest. Kata's default is virtio-fs, which "
            "looks at small files faster, is slower with large ones without KVM, and costs each sandbox a copy of the "
            "template's memory, about 100 MB.",
            annotation="shared_fs",
        ),
    )
    virtio_fs_daemon: Path = field(
        default=Path("/usr/lib/qemu/virtiofsd"),
        metadata=_row(
            FilePath(),
            "The daemon that serves virtio-fs: the one that comes with QEMU 7.2. Later ones take other arguments.",
        ),
    )
    virtio_fs_cache: str = field(
        default="auto",
        metadata=_row(
            Text(choices=("auto", "always", "never", "none")),
            "What the guest may remember of files over virtio-fs: `auto` for a second, `always`, or `never`, which "
            "makes large files fast and small ones slow without KVM. (`none` is Kata's old name for `never`.)",
            annotation="virtio_fs_cache",
        ),
    )
    virtio_fs_extra_args: tuple[str, ...] = field(
        default=(),
        metadata=_row(
            ListOf(Text(), "arguments"),
            "Further arguments of the daemon.",
        ),
    )
    msize_9p: int = field(
        # 125 pages of 4 KiB is what the guest kernel's virtio transport can carry in one message.
        default=512000,
        metadata=_row(
            Integer(4096, 512000, unit="bytes"),
            "The largest 9p message. Kata's default is 8192; the largest that the guest kernel takes is faster.",
            annotation="msize_9p",
        ),
    )
    disable_block_device_use: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Plug no disk of the host's into a sandbox: a container's block devices are left out, and volumes and root "
            "file systems on disks come by the shared directory.",
            annotation="disable_block_device_use",
        ),
    )
    guest_hook_path: str = field(
        default="",
        metadata=_row(
            Text(pattern=r"(/.*)?", description="an absolute path"),
            "A directory of the guest image with hooks: every executable file in its `prestart`, `poststart` and "
            "`poststop` is run in the guest around each container's life. Its arguments are its path and that word.",
            annotation="guest_hook_path",
        ),
    )
    block_device_driver: str = field(
        default="virtio-blk",
        metadata=_row(
            Text(choices=("virtio-blk", "virtio-scsi")),
            "What the guest sees of a disk. Kata's default is virtio-scsi, with more disks than the 62 that virtio-blk "
            "has slots for, and more to do for each read and write.",
            annotation="block_device_driver",
        ),
    )
    block_device_aio: str = field(
        default="threads",
        metadata=_row(
            Text(choices=("threads", "native", "io_uring")),
            "How QEMU reads and writes disks. `native` bypasses the host's page cache. Kata's default is io_uring, "
            "which many hosts forbid.",
            annotation="block_device_aio",
        ),
    )
    block_device_cache_set: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Whether `block_device_cache_direct` and `block_device_cache_noflush` count.",
            annotation="block_device_cache_set",
        ),
    )
    block_device_cache_direct: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Bypass the host's page cache (O_DIRECT) where the guest has one of its own.",
            annotation="block_device_cache_direct",
        ),
    )
    block_device_cache_noflush: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Ignore the guest's flushes: faster, and a crash of the host may destroy the file system on the disk.",
            annotation="block_device_cache_noflush",
        ),
    )
    enable_iommu: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            'Give the guest an IOMMU, behind which its programs can drive devices by VFIO. With `vfio_mode = "vfio"` '
            "it has one without being asked.",
            annotation="enable_iommu",
        ),
    )
    enable_guest_swap: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Give the guest swap for containers whose annotations ask for it: "
            "`io.katacontainers.container.resource.swappiness` above 0, and in `….swap_in_bytes` how much memory and "
            "swap they may use together.",
            annotation="enable_guest_swap",
        ),
    )
    guest_swap_path: Path = field(
        default=Path("/var/lib/kata/swap"),
        metadata=_row(
            FilePath(),
            "The directory for that swap, in files without a name. It should be on a disk; Kata's default is in /run.",
        ),
    )
    pcie_root_port: int = field(
        default=0,
        metadata=_row(
            Integer(0, _MAX_ROOT_PORTS),
            "PCIe root ports for devices of the host, each of which takes one. There are four at least, and as many as "
            "the first container of a sandbox has devices; a pod that gives several to a later container needs this.",
            annotation="pcie_root_port",
        ),
    )
    rx_rate_limiter_max_rate: int = field(
        default=0,
        metadata=_row(
            Integer(0, _MAX_RATE, unit="bits a second"),
            "How fast each network interface of a sandbox may receive; 0 for as fast as it can.",
            annotation="rx_rate_limiter_max_rate",
        ),
    )
    tx_rate_limiter_max_rate: int = field(
        default=0,
        metadata=_row(
            Integer(0, _MAX_RATE, unit="bits a second"),
            "How fast each network interface of a sandbox may send; 0 for as fast as it can.",
            annotation="tx_rate_limiter_max_rate",
        ),
    )
    hot_plug_vfio: str = field(
        default="root-port",
        metadata=_row(
            Text(choices=("root-port", "no-port")),
            "Where the host's devices are plugged into the running machine: PCIe root ports, or nowhere, "
            "so that a container with one is refused. Kata's default is no-port.",
            annotation="hot_plug_vfio",
        ),
    )
    cold_plug_vfio: str = field(
        default="no-port",
        metadata=_row(
            Text(choices=("no-port", "root-port")),
            "Whether the devices of a sandbox's first container, or of a pod whose annotations name some "
            "(`cdi_spec_dirs`), are there when its machine is booted, in PCIe root ports: for devices that do not bear "
            "to be plugged in later. Such a machine is booted, and not restored from a template.",
            annotation="cold_plug_vfio",
        ),
    )
    seccompsandbox: str = field(
        default=_SECCOMP,
        metadata=_row(
            Text(choices=(_SECCOMP, "")),
            "The system calls that QEMU may not make, as QEMU's option `-sandbox` takes it; empty allows all. Kata's "
            "default is empty; QEMU is where a hostile guest attacks first, so it is on here, as strict as it gets.",
        ),
    )
    enable_annotations: tuple[str, ...] = field(
        default=(),
        metadata=_row(
            ListOf(Regex(), "regular expressions"),
            "Which settings a pod may change by annotation: each entry must match the annotation's short name (what "
            "follows `io.katacontainers.config.hypervisor.`, `.runtime.` or `.agent.`) from end to end. Kata matches "
            "any part of the name and does not ask for `.runtime.` and `.agent.`.",
        ),
    )
    enable_debug: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "The guest kernel and QEMU say more.",
        ),
    )

    def vcpus(self, host_cpus: int) -> int:
        """The virtual CPUs to start with on a host of `host_cpus`, at least 1."""
        wanted = host_cpus if self.default_vcpus < 0 else max(self.default_vcpus, 1)
        return min(wanted, self.max_vcpus(host_cpus))

    def max_vcpus(self, host_cpus: int) -> int:
        """The most virtual CPUs on a host of `host_cpus`, at least 1."""
        return max(1, min(self.default_maxvcpus or host_cpus, host_cpus, _MAX_VCPUS))

    def max_memory(self, host_mib: int) -> int:
        """The most memory, in MiB, on a host that has `host_mib`; never less than a sandbox begins with."""
        return max(self.default_memory, min(self.default_maxmemory or host_mib, host_mib))


@dataclass(frozen=True)
class AgentConfig:
    """[agent.kata]: the agent in the guest."""

    enable_debug: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "The agent says more.",
        ),
    )
    debug_console_enabled: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Offer a shell in the guest. Whoever may use the sandbox's sockets on the host can then enter the guest.",
        ),
    )
    kernel_modules: tuple[str, ...] = field(
        default=(),
        metadata=_row(
            ListOf(
                Text(pattern=r"[A-Za-z0-9_][A-Za-z0-9_-]*( .*)?", description="a module and its parameters"),
                "modules with their parameters",
            ),
            "Kernel modules to load in the guest, each with its parameters: "
            '`"e1000e InterruptThrottleRate=3000 EEE=1"`. An annotation separates them by `;`.',
            annotation="kernel_modules",
        ),
    )
    dial_timeout: int = field(
        default=45,
        metadata=_row(
            Integer(1, _DAY, unit="seconds"),
            "How long a new virtual machine's agent may take to answer, less the time that it waits for a processor.",
        ),
    )
    container_pipe_size: int = field(
        default=0,
        metadata=_row(
            Integer(0, 2**30, unit="bytes"),
            "The size of the pipes that carry a container's stdin, stdout and stderr in the guest; 0 leaves it to the "
            "guest's kernel.",
            annotation="container_pipe_size",
        ),
    )


@dataclass(frozen=True)
class RuntimeConfig:
    """[runtime]: what runs on the host."""

    enable_debug: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "The runtime says more.",
        ),
    )
    create_container_timeout: int = field(
        default=60,
        metadata=_row(
            Integer(1, _DAY, unit="seconds"),
            "How long the guest may take to create a container.",
            annotation="create_container_timeout",
        ),
    )
    internetworking_model: str = field(
        default="tcfilter",
        metadata=_row(
            Text(choices=("tcfilter", "macvtap", "none")),
            'How a pod\'s network interfaces get into the virtual machine: "tcfilter" joins each to a tap device by '
            'traffic control; "macvtap" has a macvtap interface take each over; "none" leaves them where they are, and '
            "containers have the loopback device only.",
            annotation="internetworking_model",
        ),
    )
    vfio_mode: str = field(
        default="guest-kernel",
        metadata=_row(
            Text(choices=("guest-kernel", "vfio")),
            "What a container gets of a host's device (`/dev/vfio/<group>`): `guest-kernel` has the guest's driver "
            "take it and gives the container the nodes that come of that, `vfio` gives it the group, under the number "
            "that it has in the guest, to drive by itself.",
            annotation="vfio_mode",
        ),
    )
    sandbox_cgroup_only: bool = field(
        default=True,
        metadata=_row(
            Flag(),
            "Everything of a sandbox (shim, QEMU, helpers) runs in the control group that the container manager has "
            "chosen, so that the pod's accounting and limits hold for all of it. False, the default of Kata's Go "
            "runtime: only the virtual CPUs do, the rest is in /kata_overhead without limits.",
            annotation="sandbox_cgroup_only",
        ),
    )
    static_sandbox_resource_mgmt: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Give a sandbox the size that its first limits, or CRI's sums for the pod, ask for, and never change it. "
            "False: processors and memory are added and taken away as containers come, change and go.",
        ),
    )
    disable_guest_empty_dir: bool = field(
        default=True,
        metadata=_row(
            Flag(),
            "Share a pod's emptyDir volumes on disk with the host, where kubelet measures them and mounts parts of "
            "them (subPath). Kata's default is false, which has them as directories of the guest beside the pod's "
            "root; its newer `emptydir_mode` shares them, too.",
            annotation="disable_guest_empty_dir",
        ),
    )
    sandbox_bind_mounts: tuple[Path, ...] = field(
        default=(),
        metadata=_row(
            ListOf(FilePath(), "paths, with `:rw` or `:ro` behind"),
            "Files and directories of the host that every sandbox's guest has in "
            "/run/kata-containers/shared/containers/sandbox-mounts, read-only unless `:rw` follows the path.",
        ),
    )
    cdi_spec_dirs: tuple[Path, ...] = field(
        default=(),
        metadata=_row(
            ListOf(FilePath(), "paths"),
            "Directories of the host with specifications of devices (CDI), usually /etc/cdi and /var/run/cdi: a "
            "container whose annotations `cdi.k8s.io/…` name one of these gets it. Without, only the container engine "
            "knows devices of the host by name, as containerd 1.7 does, and such annotations are for the guest. Not "
            "Kata's.",
        ),
    )
    disable_guest_seccomp: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Leave the containers' seccomp profiles out. Kata's default is true; here they are applied in the guest, "
            "where they keep a container from the guest's kernel and so from its neighbours in the pod.",
            annotation="disable_guest_seccomp",
        ),
    )


@dataclass(frozen=True)
class FactoryConfig:
    """[factory]: how virtual machines come to be."""

    enable_template: bool = field(
        default=True,
        metadata=_row(
            Flag(),
            "Start virtual machines from a template: one of each size is booted once and saved, and every sandbox goes "
            "on from there. Kata's default is false; without it every start waits for a boot, and sandboxes share no "
            "memory.",
        ),
    )
    template_path: Path = field(
        default=TEMPLATES,
        metadata=_row(
            FilePath(),
            "Where templates are kept, about 100 MB each. Kata's default, a tmpfs in /run/vc/vm/template, takes that "
            "much memory whether or not it is in use, and has to be made anew after each start of the host.",
        ),
    )
    vm_cache_number: int = field(
        default=1,
        metadata=_row(
            Integer(0, 1000),
            "How many virtual machines `kata factory serve` keeps in standby, each for one sandbox. Kata's default is "
            "0; here nothing is kept unless that command runs.",
        ),
    )


@dataclass(frozen=True)
class Config:
    """Everything that can be configured. `Config()` is the built-in defaults."""

    hypervisor: HypervisorConfig = field(default_factory=HypervisorConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    factory: FactoryConfig = field(default_factory=FactoryConfig)


@dataclass(frozen=True)
class Section:
    """A section of the file.

    Attributes:
        name: as TOML writes it, without brackets.
        attribute: the field of `Config`, and what follows `io.katacontainers.config.` in annotations.
        settings: its rows by key, in the order of the documentation.
    """

    name: str
    attribute: str
    title: str
    settings: dict[str, Setting]


def _section(
    name: str, attribute: str, kind: type[HypervisorConfig | AgentConfig | RuntimeConfig | FactoryConfig]
) -> Section:
    rows = {f.name: Setting(key=f.name, default=f.default, **f.metadata) for f in fields(kind)}
    assert kind.__doc__ is not None
    return Section(name, attribute, kind.__doc__.partition(": ")[2].rstrip("."), rows)


SECTIONS = (
    _section("hypervisor.qemu", "hypervisor", HypervisorConfig),
    _section("agent.kata", "agent", AgentConfig),
    _section("runtime", "runtime", RuntimeConfig),
    _section("factory", "factory", FactoryConfig),
)
