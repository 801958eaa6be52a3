"""Which kernel modules go into the guest, and what they depend on.

Pure: lists of names and the text of `modules.dep` in, paths out. Names may be shell patterns; `-` and `_` are the same,
as for modprobe.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from kata.errors import NotFound

# What the initrd needs to reach the root disk, and the agent's channel because everything needs that one.
# crc32c_generic: libcrc32c asks the crypto layer for "crc32c" when it starts; modprobe would know, insmod does not.
INITRD = ("virtio_pci", "virtio_blk", "crc32c_generic", "erofs", "virtio_console")

# What modprobe finds in the guest, by purpose.
ROOT: dict[str, tuple[str, ...]] = {
    "shared files": ("9p", "9pnet_virtio", "virtiofs", "fuse", "cuse", "overlay"),
    "block devices": ("loop", "virtio_blk", "virtio_scsi", "sd_mod", "sr_mod", "sg", "nvme", "ahci"),
    "persistent memory": ("libnvdimm", "nfit", "nd_pmem", "virtio_pmem", "device_dax", "dax_pmem", "kmem"),
    "device mapper": ("dm-mod", "dm-crypt", "dm-verity", "dm-integrity", "dm-snapshot", "dm-thin-pool"),
    "file systems": (
        *("erofs", "ext4", "xfs", "btrfs", "squashfs", "isofs", "vfat", "nls_ascii", "nls_cp437", "nls_utf8"),
        # What a privileged container mounts itself. systemd wants the first two.
        *("autofs4", "binfmt_misc", "nfs", "nfsv3", "nfsv4", "cifs"),
    ),
    "virtio": ("virtio_pci", "virtio_net", "virtio_balloon", "virtio_mem", "virtio-rng", "virtio_console"),
    "host sockets": ("vmw_vsock_virtio_transport", "vsock_loopback", "vsock_diag"),
    "assigned devices": ("vfio-pci", "vfio_iommu_type1", "e1000", "e1000e", "igb", "igbvf", "ixgbevf", "iavf"),
    "network interfaces": (
        *("veth", "bridge", "br_netfilter", "tun", "tap", "macvlan", "macvtap", "ipvlan", "dummy", "ifb", "vrf"),
        *("8021q", "vxlan", "geneve", "wireguard", "ip_gre", "ipip", "sit", "ip6_tunnel"),
    ),
    "packet filters": (
        *("ip_tables", "iptable_*", "ip6_tables", "ip6table_*", "ipt_REJECT", "ip6t_REJECT", "xt_*", "nf_tables"),
        *("nft_*", "nf_nat", "nf_conntrack", "nf_conntrack_netlink", "ip_set", "ip_set_*"),
    ),
    "traffic control": (
        *("sch_fq", "sch_htb", "sch_tbf", "sch_ingress", "sch_netem", "cls_u32", "cls_bpf", "cls_matchall"),
        *("act_mirred", "act_gact", "act_police", "act_bpf", "tcp_bbr"),
    ),
    "diagnosis": ("inet_diag", "tcp_diag", "udp_diag", "unix_diag", "af_packet_diag"),
    "clock": ("ptp_kvm",),
    "cryptography": ("crc32c_generic", "crc32c-intel", "aesni-intel", "xts", "algif_skcipher", "sha512_generic"),
}

# Pulled in by nothing here, however the patterns above grow: IPVS is half a megabyte that only a node uses.
_UNWANTED = ("xt_ipvs", "xt_nfacct")


@dataclass(frozen=True, slots=True)
class ModuleTree:
    """What `depmod` found out about a kernel.

    Attributes:
        dependencies: path of each module below /lib/modules/<release> to the paths of all it needs, as in modules.dep;
            what a compression adds to the names of files is part of the paths.
        builtin: names of what is not a module but part of the kernel.
    """

    dependencies: dict[str, tuple[str, ...]]
    builtin: frozenset[str]

    @classmethod
    def parse(cls, modules_dep: str, modules_builtin: str) -> ModuleTree:
        """Parse the texts of modules.dep and modules.builtin (modules.dep(5))."""
        dependencies = {}
        for line in modules_dep.splitlines():
            path, _, needs = line.partition(":")
            dependencies[path] = tuple(needs.split())
        return cls(dependencies, frozenset(_name(line) for line in modules_builtin.splitlines()))

    def load_order(self, wanted: Iterable[str]) -> list[str]:
        """Paths of the wanted modules and all they depend on, each after what it needs, without repetition.

        Raises:
            NotFound: neither a module nor part of the kernel has that name.
        """
        by_name = {_name(path): path for path in self.dependencies}
        order: dict[str, None] = {}
        for pattern in wanted:
            pattern = pattern.replace("-", "_")
            names = sorted(fnmatch.filter(by_name, pattern)) if "*" in pattern else [pattern]
            for name in names:
                if name in _UNWANTED:
                    continue
                if name in by_name:
                    path = by_name[name]
                    # modules.dep names the closure, what must be loaded first last.
                    order.update(dict.fromkeys((*reversed(self.dependencies[path]), path)))
                elif name not in self.builtin:
                    raise NotFound(f"the kernel has no module {name}")
        return list(order)


def root_modules() -> Sequence[str]:
    """All names and patterns for the guest's root."""
    return [name for names in ROOT.values() for name in names]


def _name(path: str) -> str:
    return PurePosixPath(path).name.partition(".")[0].replace("-", "_")
