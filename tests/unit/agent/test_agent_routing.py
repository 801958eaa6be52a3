"""The agent's routes and rules in a network namespace: what the host says, beside what others have made."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from kata.agent.routing import Routing, list_routes
from kata.errors import FailedPrecondition, InvalidArgument
from kata.linux import routing
from kata.linux.namespaces import inside_new
from kata.linux.netlink import Netlink
from kata.protocols import agent_pb2, types_pb2

pytestmark = [pytest.mark.root, pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2")]


def ip(*arguments: str) -> Any:
    done = subprocess.run(["ip", "-j", *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout or "[]")


@pytest.fixture(autouse=True)
def guest() -> Iterator[None]:
    """A namespace with eth0 as the agent has set it up."""
    with inside_new("net"):
        for line in (
            "link add eth0 type veth peer name other",
            "link set lo up",
            "link set eth0 up",
            "link set other up",
            "addr add 10.1.0.2/24 dev eth0",
        ):
            ip(*line.split())
        yield


def route(dest: str = "", gateway: str = "", **fields: Any) -> types_pb2.Route:
    fields.setdefault("device", "eth0")
    return types_pb2.Route(dest=dest, gateway=gateway, **fields)


def shown(*what: str) -> list[str]:
    return [one["dst"] for one in ip("route", "show", *what) if one.get("protocol") != "kernel"]


def test_metrics_tables_and_kinds() -> None:
    hop = types_pb2.Route.Hop(device="eth0", gateway="10.1.0.7", weight=2)
    wanted = agent_pb2.Routes(
        Routes=[
            route(gateway="10.1.0.1", metric=100),
            route(gateway="10.1.0.9", metric=200),
            route("10.5.0.0/16", gateway="10.1.0.1", table=1001),
            route("10.6.0.0/16", device="", type=6),
            route("10.7.0.0/16", device="", hops=[hop, hop]),
        ]
    )
    answer = Routing().update(wanted)
    assert [(one["gateway"], one["metric"]) for one in ip("route", "show", "default")] == [
        ("10.1.0.1", 100),
        ("10.1.0.9", 200),
    ]
    assert shown("table", "1001") == ["10.5.0.0/16"]
    assert ip("route", "show", "10.6.0.0/16")[0]["type"] == "blackhole"
    assert [one["weight"] for one in ip("route", "show", "10.7.0.0/16")[0]["nexthops"]] == [2, 2]
    assert [one.metric for one in answer.Routes if not one.dest] == [100, 200]


def test_what_the_host_says_no_more_goes_and_what_a_container_has_made_stays() -> None:
    ip("rule", "add", "from", "10.1.0.2", "table", "1001", "pref", "50")
    with Netlink() as netlink:
        [rule] = routing.rules(netlink)
        routing.remove_rule(netlink, rule)
    mine = Routing()
    mine.update(
        agent_pb2.Routes(
            Routes=[route("10.5.0.0/16", table=1001), route("10.6.0.0/16", device="", type=6)], Rules=[rule]
        )
    )
    assert [one["priority"] for one in ip("rule", "show")] == [0, 50, 32766, 32767]
    ip("rule", "add", "table", "2000", "pref", "60")
    ip("route", "add", "10.8.0.0/16", "dev", "eth0", "table", "2000")
    mine.update(agent_pb2.Routes(Routes=[route("10.9.0.0/16")]))
    assert shown() == ["10.9.0.0/16"]
    assert shown("table", "1001") == []
    assert shown("table", "2000") == ["10.8.0.0/16"]
    assert [one["priority"] for one in ip("rule", "show")] == [0, 60, 32766, 32767]


def test_a_route_in_the_place_of_the_kernels() -> None:
    """What came later used to be dropped as already there."""
    wanted = agent_pb2.Routes(Routes=[route("10.1.0.0/24", scope=253, mtu=1300)])
    mine = Routing()
    for _ in range(2):
        mine.update(wanted)
        [one] = ip("route", "show", "10.1.0.0/24")
        assert one["metrics"] == [{"mtu": 1300}]


def test_two_routes_with_one_metric() -> None:
    wanted = agent_pb2.Routes(Routes=[route("10.5.0.0/16", "10.1.0.1"), route("10.5.0.0/16", "10.1.0.9")])
    Routing().update(wanted)
    assert [one["gateway"] for one in ip("route", "show", "10.5.0.0/16")] == ["10.1.0.1", "10.1.0.9"]


def test_only_the_main_table_is_listed() -> None:
    Routing().update(agent_pb2.Routes(Routes=[route("10.5.0.0/16", table=1001)]))
    assert [one.dest for one in list_routes().Routes if one.family == types_pb2.v4] == ["10.1.0.0/24"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (route("10.5.0.0/33"), "invalid prefix length"),
        (route(device="eth9"), "interface 'eth9' does not exist"),
        (route(gateway="10.1.0"), "invalid IPv4 address"),
        (route(gateway="fd01::x"), "invalid IPv6 address"),
        (route(type=300), "a number that is too large"),
        (route(hops=[types_pb2.Route.Hop(device="eth0")]), "invalid weight 0"),
        (route(hops=[types_pb2.Route.Hop(device="eth0", weight=257)]), "invalid weight 257"),
    ],
)
def test_nonsense_is_refused(wrong: types_pb2.Route, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        Routing().update(agent_pb2.Routes(Routes=[wrong]))


@pytest.mark.parametrize("wanted", [{"Routes": [route(gateway="10.99.0.1")]}, {"Rules": [b"\2" * 12]}])
def test_what_the_kernel_refuses(wanted: Any) -> None:
    with pytest.raises(FailedPrecondition):
        Routing().update(agent_pb2.Routes(**wanted))
