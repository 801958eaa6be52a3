"""Which routes and rules a guest gets: decided from made-up namespaces."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest

from kata.linux.routing import Hop, Route
from kata.linux.rtnetlink import IFF_LOOPBACK, IFF_UP, Link
from kata.protocols import agent_pb2, types_pb2
from kata.runtime.network.endpoints import Endpoint, Snapshot
from kata.runtime.network.routes import left_out, routes_message

V4, V6 = socket.AF_INET, socket.AF_INET6
LO = Link(1, "lo", "", "00:00:00:00:00:00", 65536, IFF_UP | IFF_LOOPBACK)
ETH = Link(2, "eth0", "veth", "02:00:00:00:00:02", 1400, IFF_UP)
#: Without an address: the guest does not get it.
BARE = Link(9, "tunl0", "ipip", "", 1480, 0)


def told(*routes: Route, rules: tuple[bytes, ...] = ()) -> agent_pb2.Routes:
    return routes_message(Snapshot((LO, ETH, BARE), (), routes, (), rules), [Endpoint(ETH, (), routes, ())])


def refused(*routes: Route) -> list[str]:
    return left_out(Snapshot((LO, ETH, BARE), (), routes, ()), [Endpoint(ETH, (), routes, ())])


def test_routes_that_the_kernel_makes_by_itself_are_left_to_it() -> None:
    kernel = Route(2, V4, "10.0.0.0/24", source="10.0.0.2", scope=253, protocol=2)
    mine = Route(2, V6, "fd01::/64", "fd00::1", flags=4, mtu=1300)
    [route] = told(kernel, mine).Routes
    assert (route.dest, route.gateway, route.device, route.family) == ("fd01::/64", "fd00::1", "eth0", types_pb2.v6)
    assert (route.flags, route.mtu) == (4, 1300)
    assert (route.metric, route.table, route.type) == (0, 0, 0), "as a peer of Kata's has it"
    assert refused(kernel, mine) == []


def test_two_default_routes_with_metrics() -> None:
    first, second = told(Route(2, V4, "", "10.0.0.1", priority=100), Route(2, V4, "", "10.0.0.9", priority=200)).Routes
    assert (first.gateway, first.metric) == ("10.0.0.1", 100)
    assert (second.gateway, second.metric) == ("10.0.0.9", 200)


def test_another_table_and_rules() -> None:
    message = told(Route(2, V4, "", "10.0.0.1", table=1001), rules=(b"rule",))
    assert message.Routes[0].table == 1001
    assert [*message.Rules] == [b"rule"]


@pytest.mark.parametrize("kind", [6, 7, 8, 9])
@pytest.mark.parametrize("index", [0, 1])
def test_a_route_that_discards_needs_no_interface(kind: int, index: int) -> None:
    """IPv6 has the loopback interface for it."""
    [route] = told(Route(index, V6, "fd08::/64", kind=kind)).Routes
    assert (route.type, route.device) == (kind, "")


def test_a_range_of_own_addresses() -> None:
    [route] = told(Route(1, V4, "10.26.0.0/16", kind=2, table=7)).Routes
    assert (route.type, route.device) == (2, "lo")


def test_multipath() -> None:
    hops = (Hop(2, "10.0.0.1", 3), Hop(2, "10.0.0.9", 1, 4), Hop(9))
    [route] = told(Route(0, V4, "10.27.0.0/16", hops=hops)).Routes
    assert route.device == ""
    assert [(hop.device, hop.gateway, hop.weight, hop.flags) for hop in route.hops] == [
        ("eth0", "10.0.0.1", 3, 0),
        ("eth0", "10.0.0.9", 1, 4),
    ], "by the interfaces that the guest has"


@pytest.mark.parametrize(
    ("route", "shown"),
    [
        (Route(9, V4, "10.9.0.0/16", "10.0.0.1"), "to 10.9.0.0/16 by 10.0.0.1"),
        (Route(0, V4, "", hops=(Hop(9), Hop(10))), "to everything"),
        (Route(2, V4, "224.0.0.0/4", kind=5), "to 224.0.0.0/4"),
    ],
)
def test_what_a_guest_cannot_have_is_named(route: Route, shown: str) -> None:
    assert told(route) == agent_pb2.Routes()
    assert refused(route) == [shown]


def test_the_routes_of_a_physical_nic_stay_when_it_has_left_the_namespace() -> None:
    nic: Any = replace(ETH, kind="", bus="pci", parent="0000:3b:00.0")
    route = Route(2, V4, "", "10.0.0.1")
    having = [Endpoint(nic, (), (route,), ())]
    before = routes_message(Snapshot((LO, nic), (), (route,), ()), having)
    assert len(before.Routes) == 1
    assert routes_message(Snapshot((LO,), (), (), ()), having) == before
