"""The table of settings: the fields of these classes are the TOML keys, with type, default, check and documentation.

Names, sections and meanings are Kata Containers'; a setting that Kata does not have says so. A default that differs
from Kata's says why. Everything else about settings (reading, annotations, documentation, the shipped file) is derived
from this table.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kata import architecture
from kata.architecture import Architecture
from kata.runtime.config.kinds import Document, FilePath, Flag, IdRange, Integer, Kind, ListOf, Regex, Text

IMAGES = Path("/var/lib/kata/images")
TEMPLATES = Path("/var/lib/kata/templates")
LAYERS = Path("/var/lib/kata/layers")
UPPER = Path("/var/lib/kata/upper")
#: The value of `shared_fs` that leaves it to what the sandbox is to write to (`kata.runtime.launch.shared_fs`).
SHARED_FS_AUTO = "auto"
#: The value of `block_device_aio` that leaves it to the host (`kata.runtime.devices.aio`).
AIO_AUTO = "auto"
ANNOTATION_PREFIX = "io.katacontainers.config."

_DAY = 86400
_SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_MAX_RATE = 1 << 50
#: PCIe root ports of a VM at most: the free slots of its root bus.
MAX_ROOT_PORTS = 18
#: vCPUs of a VM at most: Kata's limit for x86-64; KVM's is higher, an xAPIC has 255 ids.
MAX_VCPUS = 240


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        key: the TOML key and the name of the field.
        kind: checks and describes values.
        default: its value when it is not configured.
        doc: for the user, in Markdown.
        annotation: the short name of the annotation that sets it, or None.
        valid: the key of the list of globs of which a path in an annotation must match one, or None.
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
    """[hypervisor.qemu]: the VM."""

    path: Path = field(
        default=Path("/usr/bin/qemu-system-x86_64"),
        metadata=_row(
            FilePath(),
            "The QEMU executable.",
            annotation="path",
            valid="valid_hypervisor_paths",
        ),
    )
    valid_hypervisor_paths: tuple[Path, ...] = field(
        default=(Path("/usr/bin/qemu-system-x86_64"),),
        metadata=_row(
            ListOf(FilePath(glob=True), "globs"),
            "Values that the annotation `path` may have.",
        ),
    )
    kernel: Path = field(
        default=IMAGES / "current/vmlinux",
        metadata=_row(
            FilePath(),
            "The guest kernel, an uncompressed ELF file (vmlinux): decompression takes seconds without KVM.",
            annotation="kernel",
            valid="valid_guest_paths",
        ),
    )
    initrd: Path = field(
        default=IMAGES / "current/initrd",
        metadata=_row(
            FilePath(),
            "The initial RAM file system, which loads modules and switches to `image`. If only `initrd` is set, it is "
            "the guest's whole root, as in Kata; unlike there, both may be set.",
            annotation="initrd",
            valid="valid_guest_paths",
        ),
    )
    image: Path | None = field(
        default=IMAGES / "current/root.erofs",
        metadata=_row(
            FilePath(optional=True),
            "The guest's root file system, attached read-only; empty if `initrd` is the whole root. By default that of "
            "the current image of `kata image build`, whatever file system it has.",
            annotation="image",
            valid="valid_guest_paths",
        ),
    )
    kernel_verity_params: str = field(
        default="",
        metadata=_row(
            Text(
                pattern=r"(root_hash=[0-9a-f]{64},.*)?",
                description='"root_hash=…,salt=…,data_blocks=…,data_block_size=…,hash_block_size=…" or ""',
            ),
            "What the guest's kernel checks each block of `image` with (dm-verity). Empty means those in the file "
            "beside the image, whose name ends in `.verity`; without one, nothing is checked.",
        ),
    )
    valid_guest_paths: tuple[Path, ...] = field(
        default=(IMAGES / "*/*",),
        metadata=_row(
            ListOf(FilePath(glob=True), "globs"),
            "Values that the annotations `kernel`, `initrd` and `image` may have. (Not in Kata.)",
        ),
    )
    host_programs: Path = field(
        default=IMAGES / "current/host",
        metadata=_row(
            FilePath(),
            "The directory with the programs that serve a sandbox's files, which `kata image build` makes. They run on "
            "the host: unlike the guest's files, no annotation can name others. (Not in Kata.)",
        ),
    )
    machine_type: str = field(
        default="q35",
        metadata=_row(
            Text(choices=tuple(one.machine_type for one in architecture.ALL)),
            "QEMU's machine type, and with it the guest's architecture: `virt` is for an arm64 guest, emulated by the "
            "`path` of that architecture.",
            annotation="machine_type",
        ),
    )
    accelerator: str = field(
        default="auto",
        metadata=_row(
            Text(choices=("auto", "kvm", "tcg")),
            "How the guest's code is executed: `kvm` by hardware virtualization, `tcg` by emulation, `auto` by KVM "
            "where it runs a guest. Emulation is slow and, by QEMU's own security policy, no security boundary. "
            "(Not in Kata.)",
        ),
    )
    require_kvm: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Refuse to start a sandbox without KVM. Set it where VMs have to isolate tenants. (Not in Kata.)",
        ),
    )
    pvm_guest: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "The guest kernel is made for PVM, the KVM of hosts whose CPU has no hardware virtualization: a /dev/kvm "
            "that runs only such guests is used, too, if the trial boot succeeds. Kernels of `kata image build` are "
            "not made for it. (Not in Kata.)",
        ),
    )
    kernel_params: str = field(
        default="",
        metadata=_row(
            Text(),
            "Appended to the guest's kernel command line, so that it wins.",
            annotation="kernel_params",
        ),
    )
    default_vcpus: int = field(
        default=1,
        metadata=_row(
            Integer(-1, MAX_VCPUS, round_up=True),
            "vCPUs of a sandbox before its containers' limits are added; 0 means 1, -1 means as many as the host has "
            "CPUs, which is also the most.",
            annotation="default_vcpus",
        ),
    )
    default_maxvcpus: int = field(
        default=0,
        metadata=_row(
            Integer(0, MAX_VCPUS),
            "The maximum of vCPUs of a sandbox; 0 means as many as the host has CPUs.",
            annotation="default_max_vcpus",
        ),
    )
    default_memory: int = field(
        default=2048,
        metadata=_row(
            Integer(128, 16 * 1024 * 1024, unit="MiB"),
            "Memory of a sandbox before its containers' limits are added. The host allocates a page when the guest "
            "first touches it, so a large value costs little until it is used: 2048 takes 26 MB more than 512 to boot.",
            annotation="default_memory",
        ),
    )
    default_maxmemory: int = field(
        default=0,
        metadata=_row(
            Integer(0, 16 * 1024 * 1024, unit="MiB"),
            "The maximum of memory of a sandbox; 0 means as much as the host has.",
        ),
    )
    memory_slots: int = field(
        default=10,
        metadata=_row(
            Integer(0, 255),
            "How many times memory can be hot-plugged into a sandbox. Unplugging frees the slot.",
            annotation="memory_slots",
        ),
    )
    enable_hugepages: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Put a sandbox's memory into huge pages of 2 MiB from the host's pool (`vm.nr_hugepages`), all of it at "
            "its start, for programs that use much memory under KVM. Such a sandbox is booted, not restored from a "
            "template, and shares no page with others; the host's memory cgroups do not count these pages.",
            annotation="enable_hugepages",
        ),
    )
    cpu_features: str = field(
        default="",
        metadata=_row(
            Text(
                pattern=r"([+-]?[A-Za-z0-9_.-]+(=[A-Za-z0-9_.-]+)?(,[+-]?[A-Za-z0-9_.-]+(=[A-Za-z0-9_.-]+)?)*)?",
                description='CPU features separated by commas, such as "pmu=off,-avx512f"',
            ),
            "Appended to the CPU model on QEMU's command line, so that they win: under KVM that is the host's CPU "
            "without performance counters and virtualization (`pmu=off,svm=off,vmx=off`).",
            annotation="cpu_features",
        ),
    )
    shared_fs: str = field(
        default=SHARED_FS_AUTO,
        metadata=_row(
            Text(choices=(SHARED_FS_AUTO, "virtio-9p", "virtio-fs")),
            "How the shared tree of a sandbox is shared with the guest. Over `virtio-fs` files behave as on the host; "
            "it is faster with small files, slower with large ones without KVM, and costs each sandbox a copy of the "
            "template's memory, about 100 MB. `virtio-9p` needs no such copy. `auto` is virtio-fs for a sandbox whose "
            "only container, or first, has a bind mount that it may write to, and for a pod for which the kubelet has "
            "made a volume to write to; it is 9p for all others. (Kata's default is virtio-fs, and it has no `auto`.)",
            annotation="shared_fs",
        ),
    )
    virtio_fs_daemon: str = field(
        default="",
        metadata=_row(
            Text(pattern=r"(/.*)?", description='an absolute path, or ""'),
            "Another virtiofsd to serve virtio-fs with: the one in Rust, since version 1.13. Empty means that of the "
            "guest image, which is the same on every host. The one in C of QEMU 7.2 cannot be used: it ends when two "
            "programs of a guest create a file at the same moment, and its VM with it.",
        ),
    )
    virtio_fs_cache: str = field(
        default="auto",
        metadata=_row(
            Text(choices=("auto", "always", "never", "none")),
            "How long the guest caches files over virtio-fs: `auto` for a second, `always`, or `never`, which makes "
            "large files fast and small ones slow without KVM. (`none` is Kata's old name for `never`.)",
            annotation="virtio_fs_cache",
        ),
    )
    virtio_fs_extra_args: tuple[str, ...] = field(
        default=(),
        metadata=_row(
            ListOf(Text(), "arguments"),
            "Further arguments of virtiofsd.",
        ),
    )
    msize_9p: int = field(
        # 125 pages of 4 KiB is what the guest kernel's virtio transport can carry in one message.
        default=512000,
        metadata=_row(
            Integer(4096, 512000, unit="bytes"),
            "The maximum size of a 9p message. Kata's default is 8192; the maximum of the guest kernel is faster.",
            annotation="msize_9p",
        ),
    )
    disable_block_device_use: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Plug no disk of the host into a sandbox: block devices of containers are left out, and volumes and rootfs "
            "on disks are in the shared tree.",
            annotation="disable_block_device_use",
        ),
    )
    guest_hook_path: str = field(
        default="",
        metadata=_row(
            Text(pattern=r"(/.*)?", description="an absolute path"),
            "A directory of the guest image with hooks: every executable file in its `prestart`, `poststart` and "
            "`poststop` runs in the guest at that point of each container's life. Its arguments are its path and the "
            "name of the point.",
            annotation="guest_hook_path",
        ),
    )
    block_device_driver: str = field(
        default="virtio-blk",
        metadata=_row(
            Text(choices=("virtio-blk", "virtio-scsi")),
            "The device that the guest sees for a disk. Kata's default is virtio-scsi, which allows more disks than "
            "the 62 for which virtio-blk has slots, and takes longer for each read and write.",
            annotation="block_device_driver",
        ),
    )
    block_device_aio: str = field(
        default=AIO_AUTO,
        metadata=_row(
            Text(choices=(AIO_AUTO, "threads", "native", "io_uring")),
            "How QEMU reads and writes disks. `native` bypasses the host's page cache. `auto` is io_uring under KVM "
            "where the host's kernel allows it (`kernel.io_uring_disabled`), native under KVM where "
            "`block_device_cache_direct` bypasses the page cache anyway, and threads elsewhere. (Kata's default is "
            "io_uring, and it has no `auto`.)",
            annotation="block_device_aio",
        ),
    )
    block_device_cache_set: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Whether `block_device_cache_direct` and `block_device_cache_noflush` have an effect.",
            annotation="block_device_cache_set",
        ),
    )
    block_device_cache_direct: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Bypass the host's page cache (O_DIRECT): the guest has its own.",
            annotation="block_device_cache_direct",
        ),
    )
    block_device_cache_noflush: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Ignore the guest's flushes: faster, but a crash of the host may destroy the file system on the disk.",
            annotation="block_device_cache_noflush",
        ),
    )
    enable_iommu: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            'Give the guest an IOMMU, so that its programs can drive devices by VFIO. With `vfio_mode = "vfio"` it '
            "always has one.",
            annotation="enable_iommu",
        ),
    )
    enable_guest_swap: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Give the guest swap for containers whose annotations request it: "
            "`io.katacontainers.container.resource.swappiness` above 0, and in `….swap_in_bytes` the limit of memory "
            "and swap together.",
            annotation="enable_guest_swap",
        ),
    )
    guest_swap_path: Path = field(
        default=Path("/var/lib/kata/swap"),
        metadata=_row(
            FilePath(),
            "The directory for that swap, in unnamed files (O_TMPFILE). It should be on a disk; Kata's default is in "
            "/run.",
        ),
    )
    pcie_root_port: int = field(
        default=0,
        metadata=_row(
            Integer(0, MAX_ROOT_PORTS),
            "PCIe root ports for devices of the host, one for each. There are at least four, and as many as the first "
            "container of a sandbox has devices; a pod in which a later container has several needs more.",
            annotation="pcie_root_port",
        ),
    )
    rx_rate_limiter_max_rate: int = field(
        default=0,
        metadata=_row(
            Integer(0, _MAX_RATE, unit="bits per second"),
            "The maximum rate at which each network interface of a sandbox receives; 0 for no limit.",
            annotation="rx_rate_limiter_max_rate",
        ),
    )
    tx_rate_limiter_max_rate: int = field(
        default=0,
        metadata=_row(
            Integer(0, _MAX_RATE, unit="bits per second"),
            "The maximum rate at which each network interface of a sandbox sends; 0 for no limit.",
            annotation="tx_rate_limiter_max_rate",
        ),
    )
    hot_plug_vfio: str = field(
        default="root-port",
        metadata=_row(
            Text(choices=("root-port", "no-port")),
            "Where devices of the host are hot-plugged: into PCIe root ports, or nowhere, so that a container with one "
            "is refused. Kata's default is no-port.",
            annotation="hot_plug_vfio",
        ),
    )
    cold_plug_vfio: str = field(
        default="no-port",
        metadata=_row(
            Text(choices=("no-port", "root-port")),
            "Whether the VM boots with the devices of the sandbox's first container, or of a pod whose annotations "
            "name some (`cdi_spec_dirs`), in PCIe root ports: for devices that cannot be hot-plugged. Such a VM is "
            "booted, not restored from a template.",
            annotation="cold_plug_vfio",
        ),
    )
    seccompsandbox: str = field(
        default=_SECCOMP,
        metadata=_row(
            Text(choices=(_SECCOMP, "")),
            "QEMU's system call filter, in the syntax of its option `-sandbox`; empty for none. Kata's default is "
            "empty; QEMU is what a hostile guest attacks first, so the strictest filter is on here.",
        ),
    )
    jail_uid_range: str = field(
        default="",
        metadata=_row(
            IdRange(),
            "User and group ids of which QEMU gets one for each sandbox, in a root directory of its own that has "
            "nothing but what it opens; for example 1900000000-1900065535. Nothing else on the host may have them. "
            "Empty: QEMU runs as root, among the host's files. Not in Kata.",
        ),
    )
    enable_annotations: tuple[str, ...] = field(
        default=(),
        metadata=_row(
            ListOf(Regex(), "regular expressions"),
            "The settings that a pod may change by annotation: an entry must match the whole short name of the "
            "annotation (what follows `io.katacontainers.config.hypervisor.`, `.runtime.`, `.agent.` or `.factory.`). "
            "Kata matches any part of the name, and does not check `.runtime.` and `.agent.`.",
        ),
    )
    enable_debug: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Verbose logs of guest kernel and QEMU.",
        ),
    )

    @property
    def architecture(self) -> Architecture:
        """The guest's."""
        return architecture.of_machine_type(self.machine_type)

    def vcpus(self, host_cpus: int) -> int:
        """The number of vCPUs at the start, on a host with `host_cpus` CPUs; at least 1."""
        wanted = host_cpus if self.default_vcpus < 0 else max(self.default_vcpus, 1)
        return min(wanted, self.max_vcpus(host_cpus))

    def max_vcpus(self, host_cpus: int) -> int:
        """The maximum of vCPUs on a host with `host_cpus` CPUs, at least 1."""
        return max(1, min(self.default_maxvcpus or host_cpus, host_cpus, MAX_VCPUS))

    def max_memory(self, host_mib: int) -> int:
        """The maximum of memory on a host with `host_mib` MiB, in MiB; at least `default_memory`."""
        return max(self.default_memory, min(self.default_maxmemory or host_mib, host_mib))


@dataclass(frozen=True)
class AgentConfig:
    """[agent.kata]: the agent in the guest."""

    enable_debug: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Verbose log of the agent.",
        ),
    )
    enable_tracing: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Have the agent make spans, as parts of those of the runtime, which sends them on: `enable_tracing` of "
            "`[runtime]` has to be set, too.",
            annotation="enable_tracing",
        ),
    )
    debug_console_enabled: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Offer a shell in the guest (`kata exec --guest`). Everybody with access to the sandbox's sockets on the "
            "host can then enter the guest.",
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
            "How long the agent of a booting VM may take to answer, not counting the VM's run delay (time for which "
            "its threads wait for a CPU).",
        ),
    )
    container_pipe_size: int = field(
        default=0,
        metadata=_row(
            Integer(0, 2**30, unit="bytes"),
            "The size of the pipes of a container's stdin, stdout and stderr in the guest; 0 for the guest kernel's "
            "default.",
            annotation="container_pipe_size",
        ),
    )
    policy: str = field(
        default="",
        metadata=_row(
            Document(maximum=128 << 10),
            "Which requests the agent takes, and with which fields: a [policy](../guide/policy.md), set before the "
            "sandbox is created. Empty means all. An annotation has it in base64, as in Kata.",
            annotation="policy",
        ),
    )


@dataclass(frozen=True)
class RuntimeConfig:
    """[runtime]: the runtime on the host."""

    enable_debug: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Verbose log of the runtime.",
        ),
    )
    enable_tracing: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Make OpenTelemetry traces of starts, execs and stops, and send them to `kata-trace-forwarder`, which "
            "exports them. A traced shim needs more memory and starts later.",
        ),
    )
    trace_forwarder_socket: Path = field(
        default=Path("/run/kata-trace-forwarder"),
        metadata=_row(
            FilePath(),
            "Where spans are sent: the `--socket-path` of `kata-trace-forwarder`. (Not in Kata.)",
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
            'How a pod\'s network interfaces are connected to the VM: "tcfilter" redirects between each and a tap '
            'device by traffic control; "macvtap" puts a macvtap interface on each; "none" leaves them alone, and '
            "containers have only the loopback interface.",
            annotation="internetworking_model",
        ),
    )
    vfio_mode: str = field(
        default="guest-kernel",
        metadata=_row(
            Text(choices=("guest-kernel", "vfio")),
            "What a container gets of a device of the host (`/dev/vfio/<group>`): with `guest-kernel`, a driver of the "
            "guest binds it and the container gets the resulting device nodes; with `vfio`, the container gets the "
            "IOMMU group, under its number in the guest, and drives the device itself.",
            annotation="vfio_mode",
        ),
    )
    sandbox_cgroup_only: bool = field(
        default=True,
        metadata=_row(
            Flag(),
            "Run everything of a sandbox (shim, QEMU, helpers) in the cgroup that the container engine has chosen, so "
            "that the pod's accounting and limits cover all of it. False, the default of Kata's Go runtime: only the "
            "vCPUs run there, the rest is in /kata_overhead without limits.",
            annotation="sandbox_cgroup_only",
        ),
    )
    static_sandbox_resource_mgmt: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Size a sandbox by its first limits, or by CRI's sums for the pod, and never resize it. False: vCPUs and "
            "memory are hot-plugged and unplugged as containers come, change and go.",
        ),
    )
    disable_guest_empty_dir: bool = field(
        default=True,
        metadata=_row(
            Flag(),
            "Share a pod's emptyDir volumes on disk with the host, where kubelet measures them and mounts parts of "
            "them (subPath). Kata's default is false, which makes them directories of the guest beside the pod's "
            "rootfs; its newer `emptydir_mode` shares them, too.",
            annotation="disable_guest_empty_dir",
        ),
    )
    sandbox_bind_mounts: tuple[Path, ...] = field(
        default=(),
        metadata=_row(
            ListOf(FilePath(), "paths, optionally followed by `:rw` or `:ro`"),
            "Files and directories of the host that every guest has in "
            "/run/kata-containers/shared/containers/sandbox-mounts, read-only unless `:rw` follows the path.",
        ),
    )
    rootfs_layers: str = field(
        default="shared",
        metadata=_row(
            Text(choices=("shared", "disks")),
            "How a container gets the root file system that containerd's overlayfs snapshotter has made: `shared`, as "
            "one directory in the shared tree; `disks`, as read-only disks, one for each layer, with an overlay in the "
            "guest. (Not in Kata.)",
            annotation="rootfs_layers",
        ),
    )
    rootfs_upper: str = field(
        default="disk",
        metadata=_row(
            Text(choices=("host", "disk", "memory")),
            "Where a container writes whose layers are disks: `disk`, a sparse image file, or `memory`, the guest's, "
            "which counts as the container's: nothing is kept. `host` is the snapshot's own directory, where `commit` "
            "and a restart of the container find what was written, but it is slower, and no symbolic link can be made "
            "over 9p; where the shared tree is over virtio-fs, such a root is shared as one directory. For `kata run "
            "IMAGE`, which keeps nothing, `host` is `disk`. (Not in Kata.)",
            annotation="rootfs_upper",
        ),
    )
    rootfs_upper_path: Path = field(
        default=UPPER,
        metadata=_row(
            FilePath(),
            "The directory for these image files, which have no names (O_TMPFILE). It should be on a disk. (Not in "
            "Kata.)",
        ),
    )
    rootfs_upper_size: int = field(
        default=20480,
        metadata=_row(
            Integer(64, 16 * 1024 * 1024, unit="MiB"),
            "What such an image file holds at most; it takes as much of the host's disk as has been written. (Not in "
            "Kata.)",
        ),
    )
    layer_cache_path: Path = field(
        default=LAYERS,
        metadata=_row(
            FilePath(),
            "The directory for layers as disks: each is made once, and all sandboxes share it. (Not in Kata.)",
        ),
    )
    layer_cache_size: int = field(
        default=20480,
        metadata=_row(
            Integer(0, 1 << 30, unit="MiB"),
            "How much of the host's disk they may take: whoever adds one removes those that have not been used for the "
            "longest time, but none that a sandbox has. (Not in Kata.)",
        ),
    )
    cdi_spec_dirs: tuple[Path, ...] = field(
        default=(),
        metadata=_row(
            ListOf(FilePath(), "paths"),
            "Directories of the host with device specifications (CDI), usually /etc/cdi and /var/run/cdi: a container "
            "whose annotations `cdi.k8s.io/…` name one of these devices gets it. Without directories, only the "
            "container engine resolves devices of the host, as containerd 1.7 does, and such annotations are for the "
            "guest. (Not in Kata.)",
        ),
    )
    disable_guest_seccomp: bool = field(
        default=False,
        metadata=_row(
            Flag(),
            "Do not apply the containers' seccomp profiles. Kata's default is true; here they are applied in the "
            "guest, where they protect the guest's kernel, and so the other containers of the pod.",
            annotation="disable_guest_seccomp",
        ),
    )


@dataclass(frozen=True)
class FactoryConfig:
    """[factory]: how VMs are created."""

    enable_template: bool = field(
        default=True,
        metadata=_row(
            Flag(),
            "Restore VMs from a template: one VM of each size is booted once and saved, and every sandbox is restored "
            "from it. Kata's default is false; then every start waits for a boot, and sandboxes share no memory.",
        ),
    )
    template_path: Path = field(
        default=TEMPLATES,
        metadata=_row(
            FilePath(),
            "The directory of templates, about 100 MB each. Kata's default, a tmpfs in /run/vc/vm/template, takes that "
            "much memory whether it is in use or not, and has to be filled again after each boot of the host.",
        ),
    )
    template_domain: str = field(
        default="",
        metadata=_row(
            Text(
                pattern=r"([A-Za-z0-9._-]|\{namespace\}){0,128}",
                description='letters, digits, "_", "." and "-", at most 128, and "{namespace}"',
            ),
            "Only sandboxes of one domain share a template, and so memory. `{namespace}` stands for the pod's "
            'namespace, so `"{namespace}"` gives each namespace templates of its own; a sandbox that is of no pod has '
            "none. Each domain takes the time and the disk space of its templates. Who may set the annotation chooses "
            "with whom a pod shares memory. (Not in Kata.)",
            annotation="template_domain",
        ),
    )
    vm_cache_number: int = field(
        default=1,
        metadata=_row(
            Integer(0, 1000),
            "How many VMs `kata factory serve` keeps in standby, each for one sandbox. Kata's default is 0; here, no "
            "VM is kept unless that command runs.",
        ),
    )


@dataclass(frozen=True)
class Config:
    """All settings. `Config()` has the built-in defaults."""

    hypervisor: HypervisorConfig = field(default_factory=HypervisorConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    factory: FactoryConfig = field(default_factory=FactoryConfig)

    @property
    def uses_templates(self) -> bool:
        """Whether VMs are restored from a template: those on huge pages cannot be."""
        return self.factory.enable_template and not self.hypervisor.enable_hugepages


@dataclass(frozen=True)
class Section:
    """A section of the file.

    Attributes:
        name: as TOML writes it, without brackets.
        attribute: the field of `Config`, and what follows `io.katacontainers.config.` in annotations.
        title: its heading in the documentation.
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
