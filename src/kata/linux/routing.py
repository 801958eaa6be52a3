"""Routes and rules: in which table a packet's route is looked up, and what is there.

Sources: rtnetlink(7), ip-route(8), ip-rule(8), include/uapi/linux/{rtnetlink,fib_rules}.h.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from kata.linux.netlink import (
    APPEND,
    CREATE,
    EXCL,
    REPLACE,
    Netlink,
    attribute,
    attributes,
    nest,
    number,
    to_ip,
    to_number,
)

_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
_ROUTE = struct.Struct("=BBBBBBBBI")
_HOP = struct.Struct("=HBBi")
#: Family, lengths of destination and source, TOS, table, two reserved, action, flags.
_RULE = struct.Struct("=BBBBBBBBI")

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS, _RTA_MULTIPATH = 1, 4, 5, 6, 7, 8, 9
_RTA_TABLE, _RTA_VIA = 15, 18
_RTAX_MTU = 2
TABLE_MAIN, _TABLE_LOCAL, _TABLE_DEFAULT = 254, 255, 253
RTN_UNICAST, _RTN_BLACKHOLE, _RTN_THROW = 1, 6, 9
RTPROT_KERNEL = 2
_RTPROT_BOOT = 3
#: Those of RTNH_F_* that may be set; the others report the state of an interface, and the kernel refuses them.
_ROUTE_FLAGS = 0x02 | 0x04

_FRA_PRIORITY, _FRA_TABLE = 6, 15
#: Those of FIB_RULE_* that may be set: permanent, and inverted.
_RULE_FLAGS = 0x1 | 0x2
#: Priority and table of the rules that a namespace has from the beginning.
_GIVEN_RULES = frozenset(((0, _TABLE_LOCAL), (32766, TABLE_MAIN), (32767, _TABLE_DEFAULT)))


@dataclass(frozen=True)
class Hop:
    """One of a multipath route's next hops; fields as in `Route`, `weight` from 1 to 256."""

    index: int
    gateway: str = ""
    weight: int = 1
    flags: int = 0


@dataclass(frozen=True)
class Route:
    """A route.

    Attributes:
        index: of the interface; 0 without one.
        destination: "address/prefix", or "" for everything.
        gateway: an address, also of the other family; or "".
        source: an address, or "".
        flags: RTNH_F_*, such as RTNH_F_ONLINK (4) for a gateway that counts as reachable on the link.
        mtu: 0 for that of the interface.
        priority: the metric; the route with the lowest is used.
        kind: RTN_*.
        hops: of a multipath route.
    """

    index: int
    family: int
    destination: str = ""
    gateway: str = ""
    source: str = ""
    scope: int = 0
    protocol: int = _RTPROT_BOOT
    flags: int = 0
    mtu: int = 0
    priority: int = 0
    table: int = TABLE_MAIN
    kind: int = RTN_UNICAST
    hops: tuple[Hop, ...] = ()

    @property
    def discards(self) -> bool:
        """Whether it leads nowhere: blackhole, unreachable, prohibit, throw."""
        return _RTN_BLACKHOLE <= self.kind <= _RTN_THROW

    def __str__(self) -> str:
        return f"to {self.destination or 'everything'}" + (f" by {self.gateway}" if self.gateway else "")


def routes(netlink: Netlink) -> list[Route]:
    """The routes of all tables, of IPv4 and IPv6. Raises OSError."""
    found = []
    for message in netlink.dump("list routes", _GETROUTE, _ROUTE.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)):
        family, length, _, _, table, protocol, scope, kind, flags = _ROUTE.unpack_from(message.body)
        if family not in (socket.AF_INET, socket.AF_INET6):
            continue
        values = attributes(message.body[_ROUTE.size :])
        destination = to_ip(family, values.get(_RTA_DST, b""))
        route = Route(
            to_number(values.get(_RTA_OIF, b"")),
            family,
            f"{destination}/{length}" if destination else "",
            _gateway(family, values),
            to_ip(family, values.get(_RTA_PREFSRC, b"")),
            scope,
            protocol,
            flags & 0xFF,
            to_number(attributes(values.get(_RTA_METRICS, b"")).get(_RTAX_MTU, b"")),
            to_number(values.get(_RTA_PRIORITY, b"")),
            to_number(values.get(_RTA_TABLE, b"")) or table,
            kind,
            _hops(family, values.get(_RTA_MULTIPATH, b"")),
        )
        found.append(route)
    return found


def _hops(family: int, data: bytes) -> tuple[Hop, ...]:
    found = []
    while len(data) >= _HOP.size:
        length, flags, weight, index = _HOP.unpack_from(data)
        if not _HOP.size <= length <= len(data):
            break
        found.append(Hop(index, _gateway(family, attributes(data[_HOP.size : length])), weight + 1, flags))
        data = data[(length + 3) & ~3 :]
    return tuple(found)


def _gateway(family: int, values: dict[int, bytes]) -> str:
    if via := values.get(_RTA_VIA):
        return to_ip(int.from_bytes(via[:2], "little"), via[2:])
    return to_ip(family, values.get(_RTA_GATEWAY, b""))


def add_route(netlink: Netlink, route: Route) -> None:
    """Add a route.

    Raises:
        FileExistsError: there is one to the same destination with the same metric.
        OSError: the kernel refuses.
    """
    netlink.request(f"add route {route}", _NEWROUTE, _route(route), CREATE | EXCL)


def replace_route(netlink: Netlink, route: Route) -> None:
    """Add a route in the place of the first one to its destination with its metric. Raises OSError."""
    netlink.request(f"replace route {route}", _NEWROUTE, _route(route), CREATE | REPLACE)


def append_route(netlink: Netlink, route: Route) -> None:
    """Add a route after those to its destination with its metric (IPv4). Raises OSError as `add_route`."""
    netlink.request(f"append route {route}", _NEWROUTE, _route(route), CREATE | APPEND)


def remove_route(netlink: Netlink, route: Route) -> None:
    """Remove a route. Raises OSError."""
    netlink.request(f"remove route {route}", _DELROUTE, _route(route))


def _route(route: Route) -> bytes:
    address, _, length = route.destination.partition("/")
    table = route.table if route.table < 256 else 0
    flags = route.flags & _ROUTE_FLAGS
    body = _ROUTE.pack(route.family, int(length or 0), 0, 0, table, route.protocol, route.scope, route.kind, flags)
    for kind, value in ((_RTA_DST, address), (_RTA_PREFSRC, route.source)):
        if value:
            body += attribute(kind, socket.inet_pton(route.family, value))
    body += _by(route.family, route.gateway)
    if route.index and not route.discards:
        body += number(_RTA_OIF, route.index)
    if route.hops:
        body += attribute(_RTA_MULTIPATH, b"".join(_hop(route.family, hop) for hop in route.hops))
    body += number(_RTA_TABLE, route.table)
    if route.priority:
        body += number(_RTA_PRIORITY, route.priority)
    if route.mtu:
        body += nest(_RTA_METRICS, number(_RTAX_MTU, route.mtu))
    return body


def _hop(family: int, hop: Hop) -> bytes:
    by = _by(family, hop.gateway)
    return _HOP.pack(_HOP.size + len(by), hop.flags & _ROUTE_FLAGS, hop.weight - 1, hop.index) + by


def _by(family: int, gateway: str) -> bytes:
    if not gateway:
        return b""
    its = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    packed = socket.inet_pton(its, gateway)
    return attribute(_RTA_GATEWAY, packed) if its == family else attribute(_RTA_VIA, struct.pack("=H", its) + packed)


def rules(netlink: Netlink) -> list[bytes]:
    """The rules of IPv4 and IPv6 but those that every namespace has, as `add_rule` takes them. Raises OSError.

    They name interfaces and refer to tables by number, so that they mean the same in another namespace.
    """
    found = []
    for message in netlink.dump("list rules", _GETRULE, _RULE.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)):
        *header, flags = _RULE.unpack_from(message.body)
        values = attributes(message.body[_RULE.size :])
        table = to_number(values.get(_FRA_TABLE, b"")) or header[4]
        given = (to_number(values.get(_FRA_PRIORITY, b"")), table) in _GIVEN_RULES
        if header[0] in (socket.AF_INET, socket.AF_INET6) and not given:
            found.append(_RULE.pack(*header, flags & _RULE_FLAGS) + message.body[_RULE.size :])
    return found


def add_rule(netlink: Netlink, rule: bytes) -> None:
    """Add a rule. Idempotent. Raises OSError."""
    try:
        netlink.request("add rule", _NEWRULE, rule, CREATE | EXCL)
    except FileExistsError:
        return


def remove_rule(netlink: Netlink, rule: bytes) -> None:
    """Remove a rule. Idempotent. Raises OSError."""
    try:
        netlink.request("remove rule", _DELRULE, rule)
    except FileNotFoundError:
        return
