"""Plans that no VM can have are refused, with the object named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kata.errors import InvalidArgument
from kata.runtime.hypervisor.base import MAX_CHANNELS, MIN_MEMORY_MIB, VmPlan


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sandbox_id": ""}, "invalid sandbox id ''"),
        ({"sandbox_id": "../x"}, "sandbox id '../x'"),
        ({"sandbox_id": "a,b"}, "sandbox id 'a,b'"),
        ({"sandbox_id": "a\n"}, "sandbox id"),
        ({"sandbox_id": "x" * 129}, "sandbox id"),
        ({"accelerator": "auto"}, "accelerator 'auto'"),
        ({"vcpus": 0}, "invalid number of vCPUs 0 (1 to 240)"),
        ({"vcpus": 241}, "invalid number of vCPUs 241"),
        ({"vcpus": 4, "max_vcpus": 2}, "invalid maximum of vCPUs 2 (4 to 240)"),
        ({"memory_mib": MIN_MEMORY_MIB - 1}, f"the minimum is {MIN_MEMORY_MIB} MiB"),
        ({"memory_mib": -1}, "-1 MiB"),
        ({"cpu_features": "pmu=off -drive x"}, "invalid CPU features"),
        ({"cpu_features": "pmu=off\n-drive"}, "invalid CPU features"),
        ({"channels": ("a", "a")}, "channels a, a"),
        ({"channels": tuple(f"c{n}" for n in range(MAX_CHANNELS + 1))}, f"at most {MAX_CHANNELS}"),
        ({"channels": (":qmp",)}, "invalid channel name ':qmp'"),
        ({"channels": ("a,b",)}, "invalid channel name 'a,b'"),
        ({"channels": ("x" * 32,)}, "invalid channel name 'xxx"),
        ({"root_ports": 19}, "invalid number of PCIe root ports 19 (4 to 18)"),
        ({"mmio_window": 3 << 20}, "invalid MMIO window of 3145728 bytes"),
        ({"kernel_params": ("a\nb",)}, "kernel parameter"),
        ({"kernel_params": ("a\0",)}, "kernel parameter"),
    ],
)
def test_refused(make_plan: Callable[..., VmPlan], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make_plan(**changes)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_the_largest_and_the_smallest_are_accepted(make_plan: Callable[..., VmPlan]) -> None:
    make_plan(memory_mib=MIN_MEMORY_MIB, channels=tuple(f"c{n}" for n in range(MAX_CHANNELS)))
    make_plan(vcpus=240, max_vcpus=240, sandbox_id="x" * 128)
