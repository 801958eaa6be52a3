"""Where hot-plugged devices go."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kata.architecture import ARM64
from kata.errors import ResourceExhausted
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.qemu import slots
from kata.runtime.hypervisor.qemu.slots import Slot, Slots

MakePlan = Callable[..., VmPlan]


def test_paths_are_katas() -> None:
    assert (Slot(0x9, 0x1).path, Slot(0xA, 0x1F).path, Slot(0x4, 0).path) == ("09/01", "0a/1f", "04/00")


@pytest.mark.parametrize("root_ports", [4, 5, 18])
def test_the_command_line_has_the_bus_of_every_slot(make_plan: MakePlan, root_ports: int) -> None:
    plan = make_plan(root_ports=root_ports)
    there = {option.partition("id=")[2].partition(",")[0] for _, option in slots.options(plan)}
    free = Slots(plan)
    taken = [free.take() for _ in range(62)] + [free.take(express=True) for _ in range(root_ports)]
    assert {slot.bus for slot in taken} == there
    assert len(set(taken)) == 62 + root_ports


def test_a_pcie_device_gets_a_root_port(make_plan: MakePlan) -> None:
    assert Slots(make_plan()).take(express=True) == Slot(0x4, 0)


@pytest.mark.parametrize(("express", "count"), [(False, 62), (True, 4)])
def test_too_many_are_told_how_many_there_are(make_plan: MakePlan, express: bool, count: int) -> None:
    free = Slots(make_plan())
    for _ in range(count):
        free.take(express=express)
    with pytest.raises(ResourceExhausted, match=rf"all {count} (PCIe )?slots for hot-plug are in use"):
        free.take(express=express)
    free.take(express=not express)


def test_a_slot_that_was_given_back_is_taken_next(make_plan: MakePlan) -> None:
    free = Slots(make_plan())
    first, second = free.take(), free.take()
    free.give(first)
    assert (free.take(), second) == (first, Slot(0x9, 0x2))


def test_an_empty_disk_has_its_slot_for_itself(make_plan: MakePlan) -> None:
    plan = make_plan(empty_disks=(True, False))
    free = Slots(plan)
    taken = {free.take() for _ in range(60)}
    assert not taken & {slots.empty_disk(plan, 0), slots.empty_disk(plan, 1)}
    with pytest.raises(ResourceExhausted):
        free.take()


def test_without_bridges_all_slots_are_root_ports(make_plan: MakePlan) -> None:
    plan = make_plan(architecture=ARM64, root_ports=18, empty_disks=(True, False))
    there = {option.partition("id=")[2].partition(",")[0] for _, option in slots.options(plan)}
    empty = {slots.empty_disk(plan, 0), slots.empty_disk(plan, 1)}
    free = Slots(plan)
    taken = {free.take() for _ in range(15)} | {free.take(express=True)}
    assert not taken & empty
    assert {slot.bus for slot in taken | empty} == there
    with pytest.raises(ResourceExhausted, match="all 18 PCIe slots for hot-plug are in use"):
        free.take()
