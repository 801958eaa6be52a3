"""What a spec's VFIO devices become, and the count of who uses a group."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata.errors import FailedPrecondition
from kata.runtime.config.settings import Config
from kata.runtime.devices.vfio import (
    IommuGroups,
    Ports,
    VfioPlan,
    WantedGroup,
    cold_devices,
    groups_of,
    plan_vfio,
    ports,
)
from kata.runtime.hypervisor.devices import VfioDevice

from .madehost import Host

NIC, AUDIO = "0000:3b:00.0", "0000:3b:00.1"
CONTROL = {"path": "/dev/vfio/vfio", "type": "c", "major": 10, "minor": 196}
NULL = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def group(number: int, minor: int, path: str = "") -> dict[str, Any]:
    return {"path": path or f"/dev/vfio/{number}", "type": "c", "major": 240, "minor": minor}


def spec(*devices: dict[str, Any], rules: Any = ()) -> Any:
    return {"linux": {"devices": list(devices), "resources": {"devices": list(rules)}}}


def planned(given: Any, mode: str, host: Host) -> VfioPlan:
    return plan_vfio(given, mode, groups_of(given, host.iommu))


def test_the_guests_kernel_leaves_no_node(host: Host) -> None:
    host.node(7, (240, 1))
    before = spec(NULL, CONTROL, group(7, 1))
    plan = planned(before, "guest-kernel", host)
    assert plan.groups == (WantedGroup(7, "/dev/vfio/7"),)
    assert plan.spec == spec(NULL)
    assert before == spec(NULL, CONTROL, group(7, 1))


def test_a_container_that_drives_devices_keeps_the_nodes(host: Host) -> None:
    host.node(7, (240, 1))
    plan = planned(spec(NULL, CONTROL, group(7, 1)), "vfio", host)
    assert plan.groups == (WantedGroup(7, "/dev/vfio/7"),)
    assert plan.spec == spec(NULL, CONTROL, group(7, 1))


def test_the_number_says_which_group_it_is_and_not_the_path(host: Host) -> None:
    host.node(7, (240, 1))
    plan = planned(spec(group(0, 1, "/dev/my-device")), "vfio", host)
    assert plan.groups == (WantedGroup(7, "/dev/my-device"),)


def test_a_path_that_this_host_does_not_know_is_not_passed_over(host: Host) -> None:
    assert planned(spec(group(9, 5)), "vfio", host).groups == (WantedGroup(9, "/dev/vfio/9"),)


@pytest.mark.parametrize("mode", ["guest-kernel", "vfio"])
def test_a_privileged_container_gets_none(host: Host, mode: str) -> None:
    host.node(7, (240, 1))
    plan = planned(spec(NULL, CONTROL, group(7, 1), rules=[{"allow": True, "access": "rwm"}]), mode, host)
    assert plan.groups == ()
    assert plan.spec["linux"]["devices"] == [NULL]
    assert len(plan.skipped) == 2


def test_specs_without_vfio_stay_themselves(host: Host) -> None:
    plain: list[Any] = [{}, spec(), spec(NULL, {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0})]
    for before in plain:
        assert planned(before, "vfio", host).spec is before


@pytest.mark.parametrize(("size", "expected"), [(1 << 20, 0), (2 << 20, 0), (3 << 20, 4 << 20), (16 << 30, 16 << 30)])
def test_root_ports_are_as_large_as_a_device_needs(host: Host, size: int, expected: int) -> None:
    host.device(7, NIC, resource=f"0x100000000 {0x100000000 + size - 1:#x} 0x14220c\n")
    host.node(7, (240, 1))
    assert ports(spec(group(7, 1), group(9, 9)), host.iommu) == Ports(1, expected)


def test_as_many_root_ports_as_a_spec_has_devices(host: Host) -> None:
    wanted = []
    for number in range(6):
        host.device(10 + number, f"0000:0{number}:00.0")
        host.node(10 + number, (240, number))
        wanted.append(group(10 + number, number))
    assert ports(spec(*wanted), host.iommu).count == 6
    assert ports(spec(NULL), host.iommu) == Ports()


class Vm:
    """Notes what is plugged; the real one is QEMU's, in tests/nested."""

    pid = os.getpid()

    def __init__(self, *, refuses: str = "") -> None:
        self.plugged: list[str] = []
        self.refuses = refuses

    async def plug(self, device: VfioDevice) -> str:
        if device.host == self.refuses:
            raise FailedPrecondition("refused")
        self.plugged.append(device.id)
        return f"{3 + len(self.plugged):02x}/00"

    def place(self, device_id: str) -> str:
        return f"at {device_id}"

    async def unplug(self, device_id: str, timeout: float) -> None:
        self.plugged.remove(device_id)


def groups(
    vm: Vm,
    host: Host,
    mode: str = "guest-kernel",
    ports: str = "root-port",
    cold: str = "no-port",
    spec: Any = None,
) -> IommuGroups:
    config = Config()
    config = replace(
        config,
        runtime=replace(config.runtime, vfio_mode=mode),
        hypervisor=replace(config.hypervisor, hot_plug_vfio=ports, cold_plug_vfio=cold),
    )
    return IommuGroups(vm, config, host.iommu, cold_devices(spec or {}, config, host.iommu))  # type: ignore[arg-type]


async def test_a_group_is_plugged_once_and_taken_back_with_its_last_user(host: Host) -> None:
    host.device(7, NIC)
    host.device(7, AUDIO)
    host.node(7)
    vm = Vm()
    held = groups(vm, host)
    wanted = WantedGroup(7, "/dev/vfio/7")
    first = await held.attach("a", [wanted])
    assert first[0].options == (f"{NIC}=04/00", f"{AUDIO}=05/00")
    assert first[0].kind == "vfio-pci-gk"
    assert await held.attach("b", [wanted]) == first
    await held.detach("a")
    assert vm.plugged == ["vfio-0000-3b-00.0", "vfio-0000-3b-00.1"]
    await held.detach("b")
    await held.detach("b")
    assert vm.plugged == []


async def test_all_groups_or_none(host: Host) -> None:
    host.device(7, NIC)
    host.device(8, AUDIO)
    host.node(7, (240, 1))
    host.node(8, (240, 2))
    vm = Vm(refuses=AUDIO)
    held = groups(vm, host)
    with pytest.raises(FailedPrecondition, match="refused"):
        await held.attach("a", [WantedGroup(7, "/dev/vfio/7"), WantedGroup(8, "/dev/vfio/8")])
    assert vm.plugged == []
    vm.refuses = ""
    assert len(await held.attach("a", [WantedGroup(8, "/dev/vfio/8")])) == 1


async def test_a_group_that_a_container_drives_is_its_own(host: Host) -> None:
    host.device(7, NIC)
    host.node(7)
    held = groups(Vm(), host, "vfio")
    assert (await held.attach("a", [WantedGroup(7, "/dev/vfio/7")]))[0].kind == "vfio-pci"
    with pytest.raises(FailedPrecondition, match="in use by another container"):
        await held.attach("b", [WantedGroup(7, "/dev/vfio/7")])
    await held.detach("a")


@pytest.mark.parametrize("mode", ["guest-kernel", "vfio"])
async def test_what_the_vm_was_booted_with_stays(host: Host, mode: str) -> None:
    host.device(7, NIC)
    host.device(8, AUDIO)
    host.node(7, (240, 1))
    host.node(8, (240, 2))
    vm = Vm()
    held = groups(vm, host, mode, ports="no-port", cold="root-port", spec=spec(CONTROL, group(7, 1)))
    for owner in ("a", "b"):
        (attached,) = await held.attach(owner, [WantedGroup(7, "/dev/vfio/7")])
        assert attached.options == (f"{NIC}=at vfio-0000-3b-00.0",)
        await held.detach(owner)
    assert vm.plugged == []
    with pytest.raises(FailedPrecondition, match="VFIO hot-plug is disabled"):
        await held.attach("a", [WantedGroup(8, "/dev/vfio/8")])


def test_a_cold_device_that_is_not_ready_is_told_before_there_is_a_vm(host: Host) -> None:
    host.device(7, NIC, "e1000e")
    host.node(7, (240, 1))
    with pytest.raises(FailedPrecondition, match="is not completely bound to vfio-pci"):
        groups(Vm(), host, cold="root-port", spec=spec(group(7, 1)))


async def test_devices_of_the_host_can_be_switched_off(host: Host) -> None:
    host.device(7, NIC)
    host.node(7)
    with pytest.raises(FailedPrecondition, match="VFIO hot-plug is disabled"):
        await groups(Vm(), host, ports="no-port").attach("a", [WantedGroup(7, "/dev/vfio/7")])
