"""Plans that no machine can have are refused, with the object named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kata.errors import InvalidArgument
from kata.runtime.hypervisor.base import MAXIMUM_CHANNELS, MINIMUM_MEMORY_MIB, VmPlan


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sandbox_id": ""}, "sandbox id ''"),
        ({"sandbox_id": "../x"}, "sandbox id '../x'"),
        ({"sandbox_id": "a,b"}, "sandbox id 'a,b'"),
        ({"sandbox_id": "a\n"}, "sandbox id"),
        ({"sandbox_id": "x" * 129}, "sandbox id"),
        ({"accelerator": "auto"}, "accelerator 'auto'"),
        ({"machine_type": "pc"}, "machine type 'pc'"),
        ({"vcpus": 0}, "0 virtual CPUs"),
        ({"vcpus": 241}, "241 virtual CPUs"),
        ({"vcpus": 4, "max_vcpus": 2}, "at most 2 virtual CPUs"),
        ({"memory_mib": MINIMUM_MEMORY_MIB - 1}, f"the minimum is {MINIMUM_MEMORY_MIB} MiB"),
        ({"memory_mib": -1}, "-1 MiB"),
        ({"cpu_model": "max\n-drive"}, "cpu model"),
        ({"cpu_features": "pmu=off -drive x"}, "cpu features"),
        ({"channels": ("a", "a")}, "channels a, a"),
        ({"channels": tuple(f"c{n}" for n in range(MAXIMUM_CHANNELS + 1))}, f"at most {MAXIMUM_CHANNELS}"),
        ({"channels": (":qmp",)}, "name ':qmp'"),
        ({"channels": ("a,b",)}, "name 'a,b'"),
        ({"share_tag": "x" * 32}, "name 'xxx"),
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
    make_plan(memory_mib=MINIMUM_MEMORY_MIB, channels=tuple(f"c{n}" for n in range(MAXIMUM_CHANNELS)))
    make_plan(vcpus=240, max_vcpus=240, sandbox_id="x" * 128)
