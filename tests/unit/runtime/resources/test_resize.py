"""What becomes of an update when the VM keeps its size; VM and agent are stand-ins, as no real VM refuses on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from kata.errors import DeadlineExceeded
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.config.settings import Config
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.resources.host_cgroup import HostCgroup
from kata.runtime.resources.resize import SandboxResources
from kata.runtime.resources.sizing import Budget, Size


class Stubborn:
    """A VM that grows and does not shrink."""

    pid = 0

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    async def resize(self, vcpus: int, memory_mib: int) -> Any:
        self.asked.append((vcpus, memory_mib))
        raise DeadlineExceeded("the guest did not release a vCPU within 10 s")


class Unlimited:
    """A host cgroup that there is not."""

    separates_vcpus = False
    paths: tuple[str, ...] = ()

    def limit(self, limits: object) -> None:
        pass

    def show_limits(self, container_id: str, limits: object) -> None:
        pass


async def test_an_update_that_was_applied_does_not_fail_because_the_vm_keeps_its_size(tmp_path: Path) -> None:
    vm = Stubborn()
    resources = SandboxResources(
        str(tmp_path),
        cast(VirtualMachine, vm),
        cast(AgentClient, None),
        cast(HostCgroup, Unlimited()),
        Budget(Config(), Size(8, 65536)),
        Size(4, 4096),
        static=False,
    )
    applied = []
    async with resources.change("box", {"memory": {"limit": 256 << 20}}):
        applied.append("box")
    assert applied == ["box"]
    assert len(vm.asked) == 1
    assert resources.size == Size(4, 4096)


async def test_an_update_for_which_there_is_no_room_is_not_applied(tmp_path: Path) -> None:
    resources = SandboxResources(
        str(tmp_path),
        cast(VirtualMachine, Stubborn()),
        cast(AgentClient, None),
        cast(HostCgroup, Unlimited()),
        Budget(Config(), Size(8, 65536)),
        Size(1, 512),
        static=False,
    )
    with pytest.raises(DeadlineExceeded):
        async with resources.change("box", {"memory": {"limit": 8 << 30}}):
            pytest.fail("applied")
    resources.close()
