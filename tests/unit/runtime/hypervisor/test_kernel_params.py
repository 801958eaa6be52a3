"""The guest's kernel command line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kata.errors import InvalidArgument
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.kernel_params import MAX_LENGTH, kernel_command_line


def test_a_panic_ends_the_vm_and_the_console_is_heard(make_plan: Callable[..., VmPlan]) -> None:
    words = kernel_command_line(make_plan()).split()
    assert {"console=ttyS0", "panic=-1", "quiet"} <= set(words)
    assert "debug" not in words


def test_the_plans_own_parameters_come_last(make_plan: Callable[..., VmPlan]) -> None:
    line = kernel_command_line(make_plan(kernel_params=("agent.log=debug", "panic=5"), debug=True))
    assert line.endswith(" debug agent.log=debug panic=5")
    assert "quiet" not in line


@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
def test_nothing_weakens_the_guest(make_plan: Callable[..., VmPlan], accelerator: str) -> None:
    line = kernel_command_line(make_plan(accelerator=accelerator))
    assert "mitigations" not in line
    assert "nokaslr" not in line


def test_a_line_that_the_kernel_would_cut_off_is_refused(make_plan: Callable[..., VmPlan]) -> None:
    room = MAX_LENGTH - len(kernel_command_line(make_plan())) - 1
    kernel_command_line(make_plan(kernel_params=("x" * room,)))
    with pytest.raises(InvalidArgument, match=f"is {MAX_LENGTH + 1} characters long"):
        kernel_command_line(make_plan(kernel_params=("x" * (room + 1),)))
