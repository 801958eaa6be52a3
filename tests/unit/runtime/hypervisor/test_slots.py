"""Where hot-plugged devices go."""

from __future__ import annotations

import pytest

from kata.errors import ResourceExhausted
from kata.runtime.hypervisor.qemu import slots
from kata.runtime.hypervisor.qemu.slots import Slot, Slots


def test_paths_are_katas() -> None:
    assert (Slot(0x9, 0x1).path, Slot(0xA, 0x1F).path, Slot(0x4, 0).path) == ("09/01", "0a/1f", "04/00")


@pytest.mark.parametrize("root_ports", [4, 5, 18])
def test_the_command_line_has_the_bus_of_every_slot(root_ports: int) -> None:
    there = {option.partition("id=")[2].partition(",")[0] for _, option in slots.options(root_ports)}
    free = Slots(root_ports)
    taken = [free.take() for _ in range(62)] + [free.take(express=True) for _ in range(root_ports)]
    assert {slot.bus for slot in taken} == there
    assert len(set(taken)) == 62 + root_ports


def test_a_pcie_device_gets_a_root_port() -> None:
    assert Slots().take(express=True) == Slot(0x4, 0)


@pytest.mark.parametrize(("express", "count"), [(False, 62), (True, 4)])
def test_too_many_are_told_how_many_there_are(express: bool, count: int) -> None:
    free = Slots()
    for _ in range(count):
        free.take(express=express)
    with pytest.raises(ResourceExhausted, match=rf"all {count} (PCIe )?slots for hot-plug are in use"):
        free.take(express=express)
    free.take(express=not express)


def test_a_slot_that_was_given_back_is_taken_next() -> None:
    free = Slots()
    first, second = free.take(), free.take()
    free.give(first)
    assert (free.take(), second) == (first, Slot(0x9, 0x2))


def test_an_empty_disk_has_its_slot_for_itself() -> None:
    free = Slots(empty_disks=2)
    taken = {free.take() for _ in range(60)}
    assert not taken & {slots.empty_disk(0), slots.empty_disk(1)}
    with pytest.raises(ResourceExhausted):
        free.take()
