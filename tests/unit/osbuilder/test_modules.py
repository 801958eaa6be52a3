from __future__ import annotations

import pytest

from kata.errors import NotFound
from kata.osbuilder import recipe
from kata.osbuilder.modules import ModuleTree, of_initrd

DEP = """\
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/md/dm-mod.ko:
kernel/net/netfilter/xt_mark.ko: kernel/net/netfilter/x_tables.ko
kernel/net/netfilter/xt_ipvs.ko: kernel/net/netfilter/ip_vs.ko
kernel/net/netfilter/x_tables.ko:
kernel/net/netfilter/ip_vs.ko:
kernel/net/netfilter/xt_tcpudp.ko: kernel/net/netfilter/x_tables.ko
"""
TREE = ModuleTree.parse(DEP, "kernel/drivers/pci/pci-stub.ko\nkernel/net/packet/af_packet.ko\n")


def names(wanted: list[str]) -> list[str]:
    return [path.rsplit("/", 1)[1].removesuffix(".ko") for path in TREE.load_order(wanted)]


def test_a_module_comes_after_all_it_needs() -> None:
    assert names(["virtio_pci"]) == ["virtio", "virtio_ring", "virtio_pci"]


def test_a_shared_dependency_comes_once() -> None:
    assert names(["xt_mark", "xt_tcpudp"]) == ["x_tables", "xt_mark", "xt_tcpudp"]


def test_dash_and_underscore_are_the_same() -> None:
    assert names(["dm-mod"]) == names(["dm_mod"]) == ["dm-mod"]


def test_a_pattern_stands_for_all_but_the_unwanted() -> None:
    assert names(["xt_*"]) == ["x_tables", "xt_mark", "xt_tcpudp"]


def test_a_compressed_module_has_the_same_name() -> None:
    dep = "kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz\nkernel/lib/libcrc32c.ko.xz:\n"
    tree = ModuleTree.parse(dep, "")
    assert tree.load_order(["erofs"]) == ["kernel/lib/libcrc32c.ko.xz", "kernel/fs/erofs/erofs.ko.xz"]


def test_what_is_part_of_the_kernel_needs_no_module() -> None:
    assert names(["af_packet", "pci_stub"]) == []


def test_what_a_kernel_lacks_is_named() -> None:
    assert TREE.lacking(["dm_mod", "pci-stub", "nfs", "xt_*", "af-*", "snd_*"]) == ["nfs", "snd_*"]


def test_a_module_that_is_nowhere_stops_the_build() -> None:
    with pytest.raises(NotFound, match="virtio_blk"):
        names(["virtio_pci", "virtio-blk"])


def test_a_module_that_is_misspelled_has_a_suggestion() -> None:
    with pytest.raises(NotFound, match="xt_marc") as caught:
        names(["xt_marc"])
    assert caught.value.hint == "did you mean xt_mark?"


def test_a_pattern_that_matches_nothing_stops_the_build() -> None:
    with pytest.raises(NotFound, match=r"matches nvidia\*"):
        names(["nvidia*"])
    assert names(["pci_*"]) == []


def test_a_privileged_container_can_mount_what_a_host_can() -> None:
    assert {"btrfs", "autofs4", "binfmt_misc", "nfs", "nfsv4", "cifs"} <= set(recipe.load("default").modules)


def test_the_lists_name_nothing_twice() -> None:
    for wanted in (of_initrd(["crc32c_generic", "ext4"]), *(recipe.load(name).modules for name in recipe.names())):
        normal = [name.replace("-", "_") for name in wanted]
        assert sorted(normal) == sorted(set(normal))
