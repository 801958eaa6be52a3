"""A VMM's own network namespace: nothing is done until something comes into it, and nothing is missed."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from kata.errors import FailedPrecondition, Unavailable
from kata.linux.namespaces import inside_new
from kata.runtime.network.own_network import OwnNetwork
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.root


class Vm:
    """A process in a network namespace of its own."""

    def __init__(self) -> None:
        with inside_new("net"):
            self._process = subprocess.Popen(["sleep", "60"])
        self.pid = self._process.pid

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self.pid = 0

    def ip(self, command: str) -> str:
        words = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", *command.split()]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Recorder:
    """In the place of `SandboxNetwork`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails = False

    def open(self, path: str) -> Any:
        self.calls.append(f"open {path}")
        return self

    def follow(self, vm: object, agent: object) -> None:
        self.calls.append("follow")

    async def forward(self, agent: object) -> None:
        self.calls.append("forward")

    async def fit(self, vm: object, agent: object) -> None:
        self.calls.append("fit")
        if self.fails:
            raise Unavailable("the VM has ended")

    async def end(self) -> None:
        self.calls.append("end")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def vm() -> Iterator[Any]:
    vm = Vm()
    yield vm
    vm.end()


AGENT: Any = object()


async def test_nothing_is_loaded_for_a_sandbox_without_a_network(vm: Any) -> None:
    recorder = Recorder()
    network = OwnNetwork(vm, recorder.open)
    assert "LOOPBACK,UP" in vm.ip("link show lo")
    network.follow(vm, AGENT)
    await network.fit(vm, AGENT)
    await network.end()
    network.close()
    assert recorder.calls == []


async def test_what_came_before_the_start_is_known_at_the_start(vm: Any) -> None:
    """Without a turn of the event loop, in which the follower would have seen it."""
    recorder = Recorder()
    network = OwnNetwork(vm, recorder.open)
    network.follow(vm, AGENT)
    vm.ip("link add eth0 type veth peer name other")
    await network.fit(vm, AGENT)
    assert recorder.calls == [f"open /proc/{vm.pid}/ns/net", "follow", "forward", "fit"]
    await network.fit(vm, AGENT)
    assert recorder.calls[4:] == ["fit"]
    await network.end()
    network.close()
    assert recorder.calls[-2:] == ["end", "close"]


@pytest.mark.parametrize("fails", [False, True])
async def test_what_comes_unasked_is_plugged(vm: Any, fails: bool) -> None:
    recorder = Recorder()
    recorder.fails = fails
    network = OwnNetwork(vm, recorder.open)
    network.follow(vm, AGENT)
    vm.ip("address add 10.0.0.1/32 dev lo")
    await eventually_async(lambda: recorder.calls, "it is looked at", lambda calls: "fit" in calls)
    vm.ip("address add 10.0.0.2/32 dev lo")
    await asyncio.sleep(0.05)
    assert recorder.calls.count("follow") == 1, "the rest is the follower's"
    await network.end()
    network.close()


async def test_a_vm_that_has_ended() -> None:
    vm: Any = Vm()
    vm.end()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FailedPrecondition, match=r"^network namespace /proc/0/ns/net: No such file"):
        OwnNetwork(vm, Recorder().open)
    assert len(os.listdir("/proc/self/fd")) == before
