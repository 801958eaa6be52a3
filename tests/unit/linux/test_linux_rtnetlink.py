"""Netlink against iproute2: what one writes the other reads, in a network namespace of the test's own."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from kata.linux import netlink as wire
from kata.linux import routing, rtnetlink
from kata.linux.namespaces import CLONE_NEWNET, setns, unshare
from kata.linux.netlink import GROUP_LINK, Netlink
from kata.linux.routing import Route
from kata.linux.rtnetlink import Address, Link, Neighbour
from kata.linux.tap import open_tap
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("ip") is None or shutil.which("tc") is None, reason="needs iproute2"),
]

#: The carrier is there (netdevice(7)).
_IFF_LOWER_UP = 0x10000


def ip(*arguments: str) -> Any:
    done = subprocess.run(["ip", "-d", "-j", *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout or "[]")


@pytest.fixture
def netlink() -> Iterator[Netlink]:
    """Of a namespace with a pair of interfaces va and vb."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    unshare(CLONE_NEWNET)
    try:
        for line in ("link add va type veth peer name vb", "link set lo up", "link set va up", "link set vb up"):
            ip(*line.split())
        with Netlink() as netlink:
            yield netlink
    finally:
        setns(home, CLONE_NEWNET)
        os.close(home)


def link(netlink: Netlink, name: str) -> Link:
    return next(one for one in rtnetlink.links(netlink) if one.name == name)


def test_interfaces(netlink: Netlink) -> None:
    ip("link", "set", "va", "mtu", "1400", "address", "02:00:00:00:00:0a")
    found = link(netlink, "va")
    assert (found.kind, found.mac, found.mtu) == ("veth", "02:00:00:00:00:0a", 1400)
    assert {one.name for one in rtnetlink.links(netlink)} >= {"lo", "va", "vb"}
    rtnetlink.change_link(netlink, found.index, up=False)
    rtnetlink.change_link(netlink, found.index, name="eth0", mtu=1300, mac="02:00:00:00:00:0b", arp=False, up=True)
    [shown] = ip("link", "show", "eth0")
    assert (shown["mtu"], shown["address"]) == (1300, "02:00:00:00:00:0b")
    assert {"NOARP", "UP"} <= set(shown["flags"])


def test_addresses(netlink: Netlink) -> None:
    index = link(netlink, "va").index
    ip("addr", "add", "10.1.0.2/24", "dev", "va")
    assert Address(index, socket.AF_INET, "10.1.0.2", 24) in rtnetlink.addresses(netlink)
    rtnetlink.remove_address(netlink, Address(index, socket.AF_INET, "10.1.0.2", 24))
    rtnetlink.add_address(netlink, Address(index, socket.AF_INET6, "fd00::2", 64))
    [shown] = ip("addr", "show", "va")
    assert [one["local"] for one in shown["addr_info"] if one["scope"] == "global"] == ["fd00::2"]
    assert not any(one.get("tentative") for one in shown["addr_info"] if one["local"] == "fd00::2"), "usable at once"
    with pytest.raises(FileExistsError) as caught:
        rtnetlink.add_address(netlink, Address(index, socket.AF_INET6, "fd00::2", 64))
    assert caught.value.filename == "add address fd00::2/64"


def test_routes(netlink: Netlink) -> None:
    index = link(netlink, "va").index
    ip("addr", "add", "10.1.0.2/24", "dev", "va")
    ip("route", "add", "default", "via", "10.1.0.1", "mtu", "1300")
    assert Route(index, socket.AF_INET, "", "10.1.0.1", mtu=1300) in routing.routes(netlink)
    mine = Route(index, socket.AF_INET, "10.7.0.0/16", "10.9.9.9", source="10.1.0.2", flags=4, mtu=1200, priority=5)
    routing.add_route(netlink, mine)
    with pytest.raises(FileExistsError):
        routing.add_route(netlink, mine)
    [shown] = ip("route", "show", "10.7.0.0/16")
    assert (shown["gateway"], shown["prefsrc"], shown["metric"]) == ("10.9.9.9", "10.1.0.2", 5)
    assert "onlink" in shown["flags"]
    assert mine in routing.routes(netlink)
    routing.remove_route(netlink, mine)
    assert ip("route", "show", "10.7.0.0/16") == []


#: Of every kind, as `ip route` takes them.
ROUTES = (
    "default via 10.1.0.1 dev va metric 100",
    "default via 10.1.0.254 dev va metric 200",
    "10.20.0.0/16 via 10.1.0.1 dev va table 1001",
    "10.21.0.0/16 dev va table 7 scope link src 10.1.0.2",
    "blackhole 10.22.0.0/16",
    "unreachable 10.23.0.0/16 metric 7",
    "prohibit 10.24.0.0/16 table 7",
    "throw 10.25.0.0/16 table 7",
    "local 10.26.0.0/16 dev lo table 7",
    "10.27.0.0/16 nexthop via 10.1.0.1 dev va weight 3 nexthop via 10.1.0.9 dev va weight 1 onlink",
    "10.28.0.0/16 via inet6 fd01::1 dev va",
    "default via fd01::1 dev va metric 50",
    "fd07::/64 via fd01::1 dev va table 1001",
    "blackhole fd08::/64",
    "fd09::/64 nexthop via fd01::1 dev va nexthop via fd01::2 dev va",
)
RULES = (
    "from 10.1.0.2 table 1001",
    "to 10.7.0.0/16 fwmark 0x10/0xff lookup 7 pref 99",
    "not iif va ipproto tcp dport 80-90 prohibit pref 100",
    "from fd01::/64 lookup 1001",
)


def make(netlink: Netlink) -> None:
    ip("addr", "add", "10.1.0.2/24", "dev", "va")
    ip("addr", "add", "fd01::9/64", "dev", "va", "nodad")
    for line in ROUTES:
        ip(*(["-6"] if "fd0" in line and "via inet6" not in line else []), "route", "add", *line.split())
    for line in RULES:
        ip(*(["-6"] if "fd0" in line else []), "rule", "add", *line.split())


def show() -> dict[str, Any]:
    lists = ("-4 route show table all", "-6 route show table all", "-4 rule show", "-6 rule show")
    return {what: ip(*what.split()) for what in lists}


def of_ours(shown: list[Any]) -> list[str]:
    """Without the kernel's own, which come and go with the carrier."""
    return sorted(str(one) for one in shown if one.get("protocol") != "kernel")


def test_every_kind_of_route_and_rule_can_be_made_elsewhere(netlink: Netlink) -> None:
    make(netlink)
    before = show()
    routes = [one for one in routing.routes(netlink) if one.protocol != routing.RTPROT_KERNEL]
    rules = routing.rules(netlink)
    assert (len(routes), len(rules)) == (len(ROUTES), len(RULES)), "the three of every namespace are not among them"
    for rule in rules:
        routing.remove_rule(netlink, rule)
        routing.remove_rule(netlink, rule)
    for route in routes:
        routing.remove_route(netlink, route)
    assert len(show()["-4 rule show"]) == 3
    assert routing.rules(netlink) == []
    for route in sorted(routes, key=lambda route: bool(route.gateway or route.hops)):
        routing.add_route(netlink, route)
    for rule in rules:
        routing.add_rule(netlink, rule)
        routing.add_rule(netlink, rule)
    after = show()
    for what, shown in before.items():
        assert of_ours(after[what]) == of_ours(shown)


def test_a_route_that_the_kernel_has_made_too(netlink: Netlink) -> None:
    index = link(netlink, "va").index
    ip("addr", "add", "10.1.0.2/24", "dev", "va")
    mine = Route(index, socket.AF_INET, "10.1.0.0/24", scope=253, mtu=1300)
    with pytest.raises(FileExistsError):
        routing.add_route(netlink, mine)
    routing.append_route(netlink, mine)
    assert len(ip("route", "show", "10.1.0.0/24")) == 2
    routing.remove_route(netlink, mine)
    routing.replace_route(netlink, mine)
    [shown] = ip("route", "show", "10.1.0.0/24")
    assert shown["metrics"] == [{"mtu": 1300}]


@pytest.mark.parametrize("data", [b"\1", b"\4\0\0\0\1\0\0\0", b"\377\377\0\0\1\0\0\0"])
def test_next_hops_that_are_cut_off(data: bytes) -> None:
    assert routing._hops(socket.AF_INET, data) == ()


def test_a_route_of_an_interface_without_a_carrier_can_be_made_elsewhere(netlink: Netlink) -> None:
    ip("addr", "add", "192.0.2.2/24", "dev", "va")
    ip("route", "add", "default", "via", "192.0.2.1", "dev", "va")
    ip("link", "set", "vb", "down")
    index = link(netlink, "va").index
    # The kernel's link watch marks the route, a moment after the link has lost its carrier.
    (route,) = eventually(
        lambda: [one for one in routing.routes(netlink) if one.gateway and one.flags],
        "a route that says that its link is dead",
    )
    ip("link", "set", "vb", "up")
    routing.remove_route(netlink, route)
    routing.add_route(netlink, route)
    assert [one.index for one in routing.routes(netlink) if one.gateway] == [index]


def test_neighbours(netlink: Netlink) -> None:
    index = link(netlink, "va").index
    mine = Neighbour(index, socket.AF_INET, "10.1.0.7", "02:00:00:00:00:07", rtnetlink.NUD_PERMANENT)
    rtnetlink.add_neighbour(netlink, mine)
    [shown] = ip("neigh", "show", "10.1.0.7")
    assert (shown["lladdr"], shown["state"]) == ("02:00:00:00:00:07", ["PERMANENT"])
    assert mine in rtnetlink.neighbours(netlink)


def test_what_arrives_at_one_goes_out_at_the_other(netlink: Netlink) -> None:
    """From vb to va, which passes on to a tap device: the packet can be read there."""
    (tap,) = open_tap("tap0")
    try:
        source, target = link(netlink, "va").index, link(netlink, "tap0").index
        rtnetlink.change_link(netlink, target, up=True)
        rtnetlink.redirect(netlink, source, target)
        rtnetlink.redirect(netlink, source, target)
        frame = b"\xff" * 6 + b"\x02\0\0\0\0\x0b" + b"\x88\xb5" + b"kata" * 20
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("vb", 0))
            sender.send(frame)
        os.set_blocking(tap, True)
        while not os.read(tap, 4096)[10:].startswith(frame):
            pass  # the kernel's own first packets, such as router solicitations
        rtnetlink.remove_redirect(netlink, source)
        rtnetlink.remove_redirect(netlink, source)
        shown = subprocess.run(["tc", "qdisc", "show", "dev", "va"], check=True, capture_output=True, text=True).stdout
        assert "ingress" not in shown
    finally:
        os.close(tap)
    assert all(one.name != "tap0" for one in rtnetlink.links(netlink)), "gone with its descriptor"


def test_a_tap_device_of_several_queues(netlink: Netlink) -> None:
    taps = open_tap("tap1", 3)
    try:
        assert link(netlink, "tap1").kind == "tun"
        with pytest.raises(OSError, match="Invalid argument"):
            open_tap("tap1")
    finally:
        for tap in taps:
            os.close(tap)
    assert all(one.name != "tap1" for one in rtnetlink.links(netlink))


@pytest.mark.parametrize(("rate", "shown"), [(16_000_000, 2_000_000), (80_000_000_000, 10_000_000_000)])
def test_an_interface_sends_no_faster(netlink: Netlink, rate: int, shown: int) -> None:
    index = link(netlink, "va").index
    rtnetlink.limit_rate(netlink, index, rate)
    command = ["tc", "-j", "qdisc", "show", "dev", "va"]
    (root,) = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (root["kind"], root["options"]["rate"]) == ("tbf", shown)
    with pytest.raises(OSError, match="limit the rate of interface") as caught:
        rtnetlink.limit_rate(netlink, index, rate)
    assert caught.value.errno == errno.EEXIST, "what somebody has chosen stays"
    rtnetlink.remove_limit(netlink, index)
    rtnetlink.remove_limit(netlink, index)
    assert (
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[0]["kind"] == "noqueue"
    )


def test_anothers_queue_is_not_removed(netlink: Netlink) -> None:
    index = link(netlink, "va").index
    subprocess.run(["tc", "qdisc", "add", "dev", "va", "root", "htb"], check=True)
    rtnetlink.remove_limit(netlink, index)
    command = ["tc", "-j", "qdisc", "show", "dev", "va"]
    assert json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[0]["kind"] == "htb"


def test_nothing_to_remove_on_an_interface_that_is_gone(netlink: Netlink) -> None:
    rtnetlink.remove_redirect(netlink, 9999)
    rtnetlink.remove_limit(netlink, 9999)


def test_changes_are_told(netlink: Netlink) -> None:
    # An interface tells of its carrier when the kernel gets to it.
    eventually(lambda: link(netlink, "va").flags & _IFF_LOWER_UP, "the interface is ready")
    with Netlink(GROUP_LINK) as events:
        events.drain()
        assert not events.pending()
        events.drain()
        ip("link", "set", "va", "down")
        assert events.pending()


@pytest.mark.parametrize("data", [b"", b"\1", b"\0\0\0\0", b"\xff\xff\1\0abc", b"\3\0\1\0", b"\x08\0\1\0abc"])
def test_attributes_that_are_cut_off(data: bytes) -> None:
    assert wire.attributes(data) == {}
    assert list(wire.unpack(data)) == []
