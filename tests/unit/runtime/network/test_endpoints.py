"""Which interfaces a VM gets, and what the guest is told: decided from made-up namespaces."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from kata.errors import InvalidArgument, Unimplemented
from kata.linux.routing import Route
from kata.linux.rtnetlink import IFF_LOOPBACK, IFF_NOARP, IFF_UP, Address, Link, Neighbour
from kata.protocols import types_pb2
from kata.runtime.network import endpoints as module
from kata.runtime.network.endpoints import (
    Endpoint,
    Snapshot,
    endpoints,
    interface_message,
    loopback_message,
    neighbours_message,
)

V4, V6 = socket.AF_INET, socket.AF_INET6
LO = Link(1, "lo", "", "00:00:00:00:00:00", 65536, IFF_UP | IFF_LOOPBACK)
ETH = Link(2, "eth0", "veth", "02:00:00:00:00:02", 1400, IFF_UP)


def snapshot(*links: Link, routes: tuple[Route, ...] = (), neighbours: tuple[Neighbour, ...] = ()) -> Snapshot:
    """Loopback, and the links with an address each."""
    addresses = [Address(1, V4, "127.0.0.1", 8, 254)]
    addresses += [Address(link.index, V4, f"10.0.0.{link.index}", 24) for link in links]
    return Snapshot((LO, *links), addresses, routes, neighbours)


def only(found: Snapshot) -> Endpoint:
    [endpoint] = endpoints(found, "/run/netns/pod")
    return endpoint


def test_a_namespace_with_nothing_in_it() -> None:
    assert endpoints(snapshot(), "/run/netns/pod") == []


@pytest.mark.parametrize("kind", ["veth", "macvlan", "ipvlan", "vlan"])
def test_kinds_that_are_joined_to_a_tap(kind: str) -> None:
    endpoint = only(snapshot(replace(ETH, kind=kind)))
    assert (endpoint.is_tap, endpoint.tap, endpoint.id) == (False, "tap2_kata", "net2")


def test_a_tap_is_connected_as_it_is() -> None:
    endpoint = only(snapshot(replace(ETH, kind="tun", name="tap7")))
    assert (endpoint.is_tap, endpoint.tap) == (True, "tap7")


@pytest.mark.parametrize(
    ("kind", "shown"), [("", "a device on bus \\(unknown\\)"), ("wireguard", "a wireguard interface")]
)
def test_a_kind_that_no_vm_can_be_given_is_named(kind: str, shown: str) -> None:
    with pytest.raises(Unimplemented, match=f"^network namespace /run/netns/pod: eth0 is {shown}, ") as caught:
        only(snapshot(replace(ETH, kind=kind)))
    assert "veth" in str(caught.value.hint)


@pytest.mark.parametrize(("bus", "parent"), [("pci", "0000:3b:00.0"), ("virtio", "virtio2")])
def test_a_network_card_is_found_by_its_place(bus: str, parent: str) -> None:
    endpoint = only(snapshot(replace(ETH, kind="", bus=bus, parent=parent)))
    assert endpoint.is_nic
    told = interface_message(endpoint, "02/00")
    assert (told.type, told.devicePath, told.hwAddr) == ("physical", "02/00", ETH.mac)


def test_a_card_on_another_bus_stays_the_hosts() -> None:
    with pytest.raises(Unimplemented, match="eth0 is a device on bus usb"):
        only(snapshot(replace(ETH, kind="", bus="usb", parent="1-1:1.0")))


def test_what_has_no_address_stays_whatever_it_is() -> None:
    bare = Link(3, "sit0", "sit", "", 1480, 0)
    found = snapshot(ETH)
    link_local = Address(3, V6, "fe80::3", 64, 253)
    assert [
        endpoint.link.name
        for endpoint in endpoints(
            replace(found, links=(*found.links, bare), addresses=(*found.addresses, link_local)), "x"
        )
    ] == ["eth0"]


def test_interfaces_come_by_name_each_with_what_is_its_own() -> None:
    other = Link(9, "a0", "veth", "02:00:00:00:00:09", 1500, IFF_UP)
    routes = (Route(2, V4, "", "10.0.0.1"), Route(9, V4, "10.9.0.0/16", "10.0.0.254"))
    first, second = endpoints(snapshot(ETH, other, routes=routes), "x")
    assert (first.link, second.link) == (other, ETH)
    assert (first.routes, second.routes) == (routes[1:], routes[:1])


def test_too_many() -> None:
    links = [replace(ETH, index=2 + number, name=f"eth{number}") for number in range(module.MAX_INTERFACES + 1)]
    with pytest.raises(InvalidArgument, match="has 17 interfaces; the maximum is 16"):
        endpoints(snapshot(*links), "x")


def test_what_the_agent_is_told_of_an_interface() -> None:
    message = interface_message(only(snapshot(replace(ETH, flags=IFF_UP | IFF_NOARP))), "09/01")
    assert message == types_pb2.Interface(
        device="eth0",
        name="eth0",
        IPAddresses=[types_pb2.IPAddress(family=types_pb2.v4, address="10.0.0.2", mask="24")],
        mtu=1400,
        hwAddr="02:00:00:00:00:02",
        devicePath="09/01",
        type="veth",
        raw_flags=IFF_NOARP,
    )


def test_neighbours_that_somebody_entered() -> None:
    known = Neighbour(2, V4, "10.0.0.7", "02:00:00:00:00:07", 0x80)
    learned = Neighbour(2, V4, "10.0.0.8", "02:00:00:00:00:08", 0x02)
    [entry] = neighbours_message([only(snapshot(ETH, neighbours=(known, learned)))]).ARPNeighbors
    assert (entry.toIPAddress.address, entry.device, entry.lladdr, entry.state) == (
        "10.0.0.7",
        "eth0",
        "02:00:00:00:00:07",
        0x80,
    )


def test_loopback_gets_the_addresses_that_it_has_not_by_itself() -> None:
    found = snapshot(ETH)
    more = (Address(1, V6, "::1", 128, 254), Address(1, V4, "10.9.9.9", 32), Address(1, V4, "127.0.0.2", 8, 254))
    message = loopback_message(replace(found, addresses=(*found.addresses, *more)), {"net/core/somaxconn": "77"})
    assert (message.name, dict(message.sysctls)) == ("lo", {"net/core/somaxconn": "77"})
    assert [(one.address, one.mask, one.scope) for one in message.IPAddresses] == [
        ("10.9.9.9", "32", 0),
        ("127.0.0.2", "8", 254),
    ]
    assert loopback_message(found, {}) == loopback_message(snapshot(), {}), "nothing to tell"


def test_an_interfaces_sysctls_go_with_it() -> None:
    endpoint = replace(only(snapshot(ETH)), sysctls={"net/ipv4/conf/eth0/arp_notify": "1"})
    assert dict(interface_message(endpoint, "09/01").sysctls) == {"net/ipv4/conf/eth0/arp_notify": "1"}
