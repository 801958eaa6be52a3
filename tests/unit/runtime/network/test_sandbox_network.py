"""What a guest is told as its namespace changes: a real namespace, a VM and an agent that take notes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kata.errors import DeadlineExceeded
from kata.linux.rtnetlink import Link
from kata.runtime.ledger.journal import Ledger
from kata.runtime.network.endpoints import NO_LIMIT
from kata.runtime.network.sandbox_network import SandboxNetwork
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.root


class Guest:
    """VM and agent."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._taps: list[int] = []

    def told(self) -> list[str]:
        """Names of the calls since the last time."""
        names = [name for name, _ in self.calls]
        self.calls.clear()
        return names

    async def plug(self, device: Any) -> str:
        self._taps += [os.dup(tap) for tap in device.taps]
        self.calls.append(("plug", device))
        return "09/01"

    async def unplug(self, device_id: str) -> None:
        self.calls.append(("unplug", device_id))

    async def update_interface(self, interface: Any) -> None:
        self.calls.append((f"interface {interface.name}", interface))

    async def update_routes(self, routes: Any) -> None:
        self.calls.append(("routes", routes))

    async def add_neighbours(self, neighbours: Any) -> None:
        self.calls.append(("neighbours", neighbours))

    def end(self) -> None:
        for tap in self._taps:
            os.close(tap)


@pytest.fixture
def guest() -> Iterator[Any]:
    guest = Guest()
    yield guest
    guest.end()


def change(namespace: str, *commands: str) -> None:
    for command in commands:
        words = ["nsenter", f"--net={namespace}", "sh", "-c", command]
        subprocess.run(words, check=True, capture_output=True, timeout=20)


async def no_card(link: Link) -> str:
    raise AssertionError(f"{link} is no card")


@pytest.fixture
def network(network_namespace: str, tmp_path: Path) -> Iterator[SandboxNetwork]:
    change(
        network_namespace,
        # Inherited from the host's. Changing the one resets most of the others.
        "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/ip_forward",
        "for key in rp_filter promote_secondaries; do echo 0 | tee /proc/sys/net/ipv4/conf/*/$key; done",
        "for key in default lo; do echo 1 >/proc/sys/net/ipv4/conf/$key/accept_source_route; done",
        "ip link add eth0 type veth peer name peer0",
        "ip link set peer0 up; ip link set eth0 up; ip link set lo up",
        "ip address add 192.0.2.2/24 dev eth0",
    )
    ledger = Ledger(str(tmp_path / "sandbox"))
    network = SandboxNetwork(network_namespace, ledger, "tcfilter", 1, NO_LIMIT, no_card)
    yield network
    network.close()
    assert ledger.release() == []


async def test_only_what_has_changed_is_told(network: SandboxNetwork, network_namespace: str, guest: Any) -> None:
    await network.fit(guest, guest)
    assert guest.told() == ["plug", "interface eth0", "routes"]
    await network.fit(guest, guest)
    assert guest.told() == []
    change(network_namespace, "ip route add blackhole 10.6.0.0/16")
    await network.fit(guest, guest)
    assert [len(routes.Routes) for _, routes in guest.calls] == [1]
    assert guest.told() == ["routes"]
    change(network_namespace, "ip rule add from 192.0.2.2 lookup 7")
    await network.fit(guest, guest)
    assert [len(routes.Rules) for _, routes in guest.calls] == [1]
    assert guest.told() == ["routes"]
    change(network_namespace, "ip address add 10.9.9.9/32 dev lo")
    await network.fit(guest, guest)
    assert guest.told() == ["interface lo"]
    change(network_namespace, "ip address add 192.0.2.3/24 dev eth0")
    await network.fit(guest, guest)
    assert guest.told() == ["interface eth0", "routes"], "the interface has lost its routes"
    change(network_namespace, "ip link set eth0 down address 02:00:00:00:00:07; ip link set eth0 up")
    await network.fit(guest, guest)
    assert {(one.hwAddr, one.devicePath) for name, one in guest.calls if name == "interface eth0"} == {
        ("02:00:00:00:00:07", "09/01")
    }
    assert guest.told() == ["interface eth0", "routes"], "it is the same device"
    change(network_namespace, "ip link delete eth0")
    await network.fit(guest, guest)
    assert guest.told() == ["unplug", "routes"]


async def test_an_interface_that_the_guest_could_not_set_up_is_told_again(
    network: SandboxNetwork, guest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next ones set routes over an interface that does not exist."""

    async def refuse(interface: Any) -> None:
        raise DeadlineExceeded(f"interface {interface.name} did not appear")

    with monkeypatch.context() as patched:
        patched.setattr(guest, "update_interface", refuse)
        with pytest.raises(DeadlineExceeded):
            await network.fit(guest, guest)
    assert guest.told() == ["plug"]
    await network.fit(guest, guest)
    assert guest.told() == ["interface eth0", "routes"]


async def test_a_change_that_could_not_be_followed_is_tried_again(
    network: SandboxNetwork, network_namespace: str, guest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kata.runtime.network.sandbox_network._SETTLE_S", 0.0)
    monkeypatch.setattr("kata.runtime.network.sandbox_network._RETRY_S", 0.01)
    update = guest.update_interface
    refused: list[str] = []

    async def refuse_twice(interface: Any) -> None:
        if len(refused) < 2:
            refused.append(interface.name)
            raise DeadlineExceeded(f"interface {interface.name} did not appear")
        await update(interface)

    monkeypatch.setattr(guest, "update_interface", refuse_twice)
    network.follow(guest, guest)
    change(network_namespace, "ip address add 192.0.2.3/24 dev eth0")
    await eventually_async(lambda: [name for name, _ in guest.calls], "it is set up", lambda told: "routes" in told)
    assert refused == ["eth0", "eth0"]
    await network.end()


async def test_sysctls_come_with_an_interface(network: SandboxNetwork, network_namespace: str, guest: Any) -> None:
    change(network_namespace, "echo 77 >/proc/sys/net/core/somaxconn; echo 1 >/proc/sys/net/ipv4/conf/eth0/arp_notify")
    await network.fit(guest, guest)
    told = dict(guest.calls)
    assert dict(told["interface lo"].sysctls) == {"net/core/somaxconn": "77"}
    assert dict(told["interface eth0"].sysctls) == {"net/ipv4/conf/eth0/arp_notify": "1"}
    assert guest.told()[0] == "interface lo", "first what all interfaces follow"
    change(
        network_namespace,
        "echo 78 >/proc/sys/net/core/somaxconn",
        "ip link add eth1 type veth peer name peer1; ip address add 198.51.100.2/24 dev eth1",
    )
    await network.fit(guest, guest)
    assert dict(dict(guest.calls)["interface lo"].sysctls) == {"net/core/somaxconn": "78"}
    assert guest.told() == ["interface lo", "plug", "interface eth1", "routes"]


async def test_a_route_that_the_vm_cannot_have_is_named(
    network: SandboxNetwork, network_namespace: str, guest: Any, caplog: pytest.LogCaptureFixture
) -> None:
    change(
        network_namespace,
        "ip link add bare type veth peer name other",
        "ip link set bare up; ip route add 10.7.0.0/16 dev bare",
    )
    await network.fit(guest, guest)
    assert f"{network_namespace}: the VM does not get the route to 10.7.0.0/16" in caplog.text
