"""QEMU's command line as a function of the plan."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kata.architecture import ARM64
from kata.errors import InvalidArgument
from kata.runtime.config.settings import MAX_ROOT_PORTS
from kata.runtime.hypervisor.base import MIN_ROOT_PORTS, SHARE_9P, SHARE_VIRTIO_FS, VmPlan
from kata.runtime.hypervisor.devices import VfioDevice
from kata.runtime.hypervisor.qemu.command import (
    CONSOLE_FD,
    MEMORY_FD,
    QMP_FD,
    RESTORE_FD,
    ROOT_FD,
    SHARE_FD,
    STATE_FD,
    command_line,
)
from kata.runtime.hypervisor.qemu.process import restore_commands
from kata.runtime.hypervisor.qemu.slots import Slots, root_port

FDS = {QMP_FD: 11, CONSOLE_FD: 12, "kata.rpc": 13, "log": 14}


def values(argv: list[str], option: str) -> list[str]:
    """What stands directly after each occurrence of the option."""
    return [argv[index + 1] for index, word in enumerate(argv) if word == option]


@pytest.fixture
def full(make_plan: Callable[..., VmPlan]) -> VmPlan:
    return make_plan(
        image=Path("/images/root.erofs"),
        share_dir=Path("/run/kata/abc/shared"),
        root_dir=Path("/run/kata/abc/root"),
        channels=("kata.rpc", "log"),
        vcpus=2,
        max_vcpus=4,
        memory_mib=600,
    )


def test_under_emulation(full: VmPlan) -> None:
    argv = command_line(full, FDS)
    assert argv[0] == "/usr/bin/qemu-system-x86_64"
    assert [value.partition(",")[0] for value in values(argv, "-accel")] == ["tcg"]
    assert "thread=multi" in values(argv, "-accel")[0]
    assert values(argv, "-cpu") == ["max,-erms,-fsrm"]
    assert values(argv, "-global") == []


def test_another_architecture_has_what_its_machine_has(full: VmPlan) -> None:
    argv = command_line(replace(full, architecture=ARM64, root_ports=18, empty_disks=(True, False)), FDS)
    assert values(argv, "-machine") == ["virt,gic-version=3"]
    assert values(argv, "-cpu") == ["max,pauth-impdef=on"]
    assert values(argv, "-append")[0].startswith("console=ttyAMA0 ")
    devices = values(argv, "-device")
    assert not [device for device in devices if device.startswith(("vmgenid", "pci-bridge"))]
    assert [device.partition("bus=")[2][:4] for device in devices if "id=empty" in device] == ["rp17", "rp16"]
    saved = command_line(replace(full, architecture=ARM64), FDS | {MEMORY_FD: 9})
    assert values(saved, "-machine") == ["virt,gic-version=3,memory-backend=memory"]


def test_under_kvm(make_plan: Callable[..., VmPlan]) -> None:
    argv = command_line(make_plan(accelerator="kvm", cpu_features="svm=on"), FDS)
    assert values(argv, "-accel") == ["kvm,kernel-irqchip=on"]
    assert values(argv, "-cpu") == ["host,migratable=on,pmu=off,svm=off,vmx=off,svm=on"], "the configuration's win"
    assert values(argv, "-global") == ["kvm-pit.lost_tick_policy=discard"]
    assert values(argv, "-overcommit") == ["mem-lock=off,cpu-pm=off"]
    assert "-overcommit" not in command_line(make_plan(accelerator="tcg"), FDS)


@pytest.mark.parametrize(("share_fs", "shared"), [(SHARE_9P, "off"), (SHARE_VIRTIO_FS, "on")])
def test_huge_pages(full: VmPlan, share_fs: str, shared: str) -> None:
    argv = command_line(replace(full, huge_pages=True, share_fs=share_fs, root_dir=None), FDS | {SHARE_FD: 11})
    [memory] = [word for word in values(argv, "-object") if word.startswith("memory")]
    options = f"hugetlb=on,hugetlbsize=2M,prealloc=on,share={shared}"
    assert memory == f"memory-backend-memfd,id=memory,size=600M,{options}"
    assert values(argv, "-machine") == ["q35,memory-backend=memory"]


def test_nothing_comes_along_that_was_not_asked_for(full: VmPlan) -> None:
    argv = command_line(full, FDS)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(argv)
    assert values(argv, "-display") == ["none"]
    assert values(argv, "-boot") == ["strict=on"]
    assert values(argv, "-machine") == ["q35"]
    assert values(argv, "-name") == ["sandbox-abc,debug-threads=on"]


def test_size(full: VmPlan) -> None:
    argv = command_line(full, FDS)
    assert values(argv, "-m") == ["size=600M"]
    assert values(argv, "-smp") == ["cpus=2,maxcpus=4,sockets=4,cores=1,threads=1"]


def test_size_without_room_for_more(make_plan: Callable[..., VmPlan]) -> None:
    assert values(command_line(make_plan(vcpus=3), FDS), "-smp") == ["cpus=3,maxcpus=3,sockets=3,cores=1,threads=1"]


def test_system_calls_are_confined_unless_switched_off(make_plan: Callable[..., VmPlan]) -> None:
    [rules] = values(command_line(make_plan(), FDS), "-sandbox")
    assert set(rules.split(",")) == {
        "on",
        "obsolete=deny",
        "elevateprivileges=deny",
        "spawn=deny",
        "resourcecontrol=deny",
    }
    assert "-sandbox" not in command_line(make_plan(seccomp=False), FDS)


def test_sockets_are_inherited_and_never_files(full: VmPlan) -> None:
    argv = command_line(full, FDS)
    assert values(argv, "-chardev") == [
        "socket,id=qmp,fd=11",
        "socket,id=console,fd=12",
        "socket,id=channel1,fd=13",
        "socket,id=channel2,fd=14",
    ]
    assert values(argv, "-mon") == ["chardev=qmp,mode=control"]
    assert values(argv, "-serial") == ["chardev:console"]
    assert not any("path=" in value for value in values(argv, "-chardev"))


def test_channels_have_ports_in_order(full: VmPlan) -> None:
    ports = [value for value in values(command_line(full, FDS), "-device") if value.startswith("virtserialport,")]
    assert ports == [
        "virtserialport,id=port1,bus=serial0.0,nr=1,chardev=channel1,name=kata.rpc",
        "virtserialport,id=port2,bus=serial0.0,nr=2,chardev=channel2,name=log",
    ]


@pytest.mark.parametrize("root_ports", [MIN_ROOT_PORTS, MAX_ROOT_PORTS])
def test_each_device_has_an_address_of_its_own(full: VmPlan, root_ports: int) -> None:
    devices = values(command_line(replace(full, root_ports=root_ports), FDS), "-device")
    addresses = {
        device.partition(",")[0] + str(index): address[1]
        for index, device in enumerate(devices)
        if (address := re.search(r"bus=pcie\.0,.*?addr=([^,]+)", device))
    }
    on_bus = [device for device in devices if "bus=pcie.0" in device]
    assert len(addresses) == len(on_bus)
    assert max(Counter(address.removesuffix(".0") for address in addresses.values()).values()) == 1
    by_kind = {
        ",".join(device.split(",")[:2]): address for device, address in zip(on_bus, addresses.values(), strict=True)
    }
    assert by_kind["virtio-blk-pci,id=root-disk"] == "0x2"
    assert by_kind["virtio-serial-pci,id=serial0"] == "0x3"
    assert by_kind["virtio-9p-pci,id=root0"] == "0xf"
    assert by_kind["virtio-9p-pci,id=share0"] == "0x10"
    assert {"0x4.0", "0x5.0", "0x6.0", "0x7.0", "0x9", "0xa"} <= set(addresses.values())


def test_addresses_do_not_depend_on_what_else_there_is(full: VmPlan, make_plan: Callable[..., VmPlan]) -> None:
    some = set(values(command_line(make_plan(), FDS), "-device"))
    assert some <= set(values(command_line(full, FDS), "-device"))


def test_devices_of_the_host_are_in_the_first_root_ports(make_plan: Callable[..., VmPlan]) -> None:
    devices = tuple(VfioDevice(id=f"vfio{number}", host=f"0000:3b:00.{number}") for number in range(2))
    words = command_line(make_plan(devices=devices, channels=("kata.rpc",)), FDS)
    for number in range(2):
        assert f"vfio-pci,id=vfio{number},host=0000:3b:00.{number},bus=rp{number},addr=0x0" in words
    assert root_port(1).path == "05/00"
    assert Slots(make_plan(devices=devices)).take(express=True).path == "06/00"
    with pytest.raises(InvalidArgument, match="5 devices of the host for 4 PCIe root ports"):
        make_plan(devices=devices * 2 + devices[:1])


def test_without_image_and_share_there_is_no_disk_and_no_9p(make_plan: Callable[..., VmPlan]) -> None:
    argv = command_line(make_plan(), FDS)
    assert "-blockdev" not in argv
    assert "-fsdev" not in argv


def test_the_root_image_is_read_only(full: VmPlan) -> None:
    disks = values(command_line(full, FDS), "-blockdev")
    assert len(disks) == 2
    assert all("read-only=on" in disk for disk in disks)


def test_a_path_cannot_add_options(make_plan: Callable[..., VmPlan]) -> None:
    argv = command_line(make_plan(image=Path("/i,readonly=off"), share_dir=Path("/s,security_model=x")), FDS)
    assert values(argv, "-blockdev")[0].endswith("filename=/i,,readonly=off")
    assert "path=/s,,security_model=x,security_model=none," in values(argv, "-fsdev")[0]


def test_a_helper_serves_the_share(make_plan: Callable[..., VmPlan]) -> None:
    plan = make_plan(share_dir=Path("/s"))
    assert values(command_line(plan, {**FDS, SHARE_FD: 77}), "-fsdev") == ["proxy,id=share,sock_fd=77"]


def test_a_root_has_a_device_of_its_own(make_plan: Callable[..., VmPlan]) -> None:
    plan = make_plan(share_dir=Path("/s"), root_dir=Path("/r,x"))
    helped = command_line(plan, {**FDS, SHARE_FD: 77, ROOT_FD: 78})
    assert values(helped, "-fsdev") == ["proxy,id=share,sock_fd=77", "proxy,id=root,sock_fd=78"]
    alone = command_line(plan, FDS)
    options = "security_model=none,multidevs=remap"
    assert values(alone, "-fsdev") == [f"local,id=share,path=/s,{options}", f"local,id=root,path=/r,,x,{options}"]
    for argv in (helped, alone):
        devices = [value for value in values(argv, "-device") if value.startswith("virtio-9p")]
        assert devices == [
            "virtio-9p-pci,id=share0,fsdev=share,mount_tag=kataShared,bus=pcie.0,addr=0x10",
            "virtio-9p-pci,id=root0,fsdev=root,mount_tag=kataRoot,bus=pcie.0,addr=0xf",
        ]


def test_virtio_fs_shares_memory_and_has_a_connection_but_no_device_yet(make_plan: Callable[..., VmPlan]) -> None:
    plan = make_plan(share_dir=Path("/s"), share_fs="virtio-fs")
    argv = command_line(plan, FDS | {SHARE_FD: 77, MEMORY_FD: 20, STATE_FD: 21, RESTORE_FD: 22})
    assert "socket,id=share,fd=77" in values(argv, "-chardev")
    assert not [value for value in (*values(argv, "-device"), *values(argv, "-fsdev")) if "fs" in value]
    [memory] = [value for value in values(argv, "-object") if value.startswith("memory-backend")]
    assert memory.endswith(",share=on")


def test_a_vm_to_be_saved_has_its_memory_in_a_file(full: VmPlan) -> None:
    argv = command_line(full, FDS | {MEMORY_FD: 20})
    assert values(argv, "-machine") == ["q35,memory-backend=memory"]
    [memory] = [value for value in values(argv, "-object") if value.startswith("memory-backend")]
    assert memory == "memory-backend-file,id=memory,size=600M,mem-path=/proc/self/fd/20,share=on"
    assert values(argv, "-kernel") == ["/images/vmlinux"]


def test_a_restored_vm_writes_to_no_file_and_boots_nothing(full: VmPlan) -> None:
    argv = command_line(full, FDS | {MEMORY_FD: 20, STATE_FD: 21, RESTORE_FD: 22})
    [memory] = [value for value in values(argv, "-object") if value.startswith("memory-backend")]
    assert memory.endswith(",share=off")
    assert values(argv, "-incoming") == ["defer"]
    assert "chardev=restore,mode=control" in values(argv, "-mon")
    assert not {"-kernel", "-initrd", "-append"} & set(argv)


def test_a_saved_memory_is_opened_for_reading_only_where_qemu_can(full: VmPlan) -> None:
    fds = FDS | {MEMORY_FD: 20, STATE_FD: 21, RESTORE_FD: 22}
    argv = command_line(full, fds, read_only_memory=True)
    [memory] = [value for value in values(argv, "-object") if value.startswith("memory-backend")]
    assert memory.endswith(",share=off,readonly=on,rom=off")


def test_a_state_is_read_from_a_file_where_qemu_can(full: VmPlan) -> None:
    fds = FDS | {MEMORY_FD: 20, STATE_FD: 21, RESTORE_FD: 22}
    assert values(command_line(full, fds, read_only_memory=True), "-add-fd") == ["fd=21,set=0"]
    assert restore_commands(21, from_file=True)[-1]["arguments"] == {"uri": "file:/dev/fdset/0"}
    assert "-add-fd" not in command_line(full, fds)
    assert restore_commands(21)[-1]["arguments"] == {"uri": "fd:21"}


def test_a_restored_vm_has_the_devices_of_the_saved_one(full: VmPlan) -> None:
    saved = command_line(full, FDS | {MEMORY_FD: 20})
    restored = command_line(full, FDS | {MEMORY_FD: 20, STATE_FD: 21, RESTORE_FD: 22})
    for option in ("-device", "-smp", "-m", "-cpu", "-machine"):
        assert values(saved, option) == values(restored, option)
