"""The guest's routes and rules, as the host says."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import replace

from kata.agent.network import canonical_ip, family_of, find_link, prefix_length, reason
from kata.errors import FailedPrecondition, InvalidArgument
from kata.linux import routing, rtnetlink
from kata.linux.netlink import Netlink
from kata.linux.routing import RTN_UNICAST, RTPROT_KERNEL, TABLE_MAIN, Hop, Route
from kata.linux.rtnetlink import IFF_LOOPBACK, Link
from kata.protocols import agent_pb2, types_pb2

_MAX_WEIGHT = 256

#: What the kernel tells routes apart by.
_Key = tuple[int, int, str, int]


class Routing:
    """Routes and rules of the guest.

    All of the main table are the host's. In other tables, and of rules, a privileged container may have its own: there
    only those are removed which the host gave before.
    """

    def __init__(self) -> None:
        self._given: set[_Key] = set()
        self._rules: list[bytes] = []

    def update(self, wanted: agent_pb2.Routes) -> agent_pb2.Routes:
        """Replace all routes and rules but those that the kernel or a container made.

        Returns:
            The routes that there are then.

        Raises:
            InvalidArgument: a route has an invalid address or prefix, or names an interface that does not exist.
            FailedPrecondition: the kernel refuses.
        """
        rules = [*wanted.Rules]
        with Netlink() as netlink:
            links = rtnetlink.links(netlink)
            by_name = {link.name: link for link in links}
            # Those over the link first: a gateway has to be reachable before it can be one.
            routes = [_route(one, by_name) for one in wanted.Routes]
            routes.sort(key=lambda route: bool(route.gateway or route.hops))
            loopback = {link.index for link in links if link.flags & IFF_LOOPBACK}
            try:
                for rule in self._rules:
                    if rule not in rules:
                        routing.remove_rule(netlink, rule)
                for old in routing.routes(netlink):
                    main = old.table == TABLE_MAIN and old.index not in loopback
                    if old.protocol != RTPROT_KERNEL and (main or _key(old) in self._given):
                        _remove(netlink, old)
                self._given = set()
                for route in routes:
                    self._add(netlink, route)
                self._rules = rules
                for rule in rules:
                    routing.add_rule(netlink, rule)
            except struct.error:
                raise InvalidArgument("a route has a number that is too large") from None
            except OSError as error:
                raise FailedPrecondition(reason(error)) from error
        return list_routes()

    def _add(self, netlink: Netlink, route: Route) -> None:
        key = _key(route)
        try:
            routing.add_route(netlink, route)
        except FileExistsError:
            if key in self._given and route.family == socket.AF_INET:
                routing.append_route(netlink, route)
            else:
                # Made by the kernel with an address. The pod's namespace has this one in its place.
                routing.replace_route(netlink, route)
        self._given.add(key)


def list_routes() -> agent_pb2.Routes:
    """The routes over an interface of the main table."""
    with Netlink() as netlink:
        names = {link.index: link.name for link in rtnetlink.links(netlink)}
        return agent_pb2.Routes(
            Routes=[
                types_pb2.Route(
                    dest=route.destination,
                    gateway=route.gateway,
                    device=names.get(route.index, ""),
                    source=route.source,
                    scope=route.scope,
                    family=types_pb2.v6 if route.family == socket.AF_INET6 else types_pb2.v4,
                    flags=route.flags,
                    mtu=route.mtu,
                    metric=route.priority,
                )
                for route in routing.routes(netlink)
                if route.table == TABLE_MAIN and route.kind == RTN_UNICAST and route.index
            ]
        )


def _key(route: Route) -> _Key:
    return route.family, route.table, route.destination, route.priority


def _remove(netlink: Netlink, route: Route) -> None:
    try:
        routing.remove_route(netlink, route)
    except OSError as error:
        if error.errno != errno.ESRCH:  # it went with another one
            raise


def _route(one: types_pb2.Route, links: dict[str, Link]) -> Route:
    destination = ""
    if one.dest and one.dest != "default":
        address, _, length = one.dest.partition("/")
        default = "128" if one.family == types_pb2.v6 else "32"
        destination = f"{canonical_ip(address, one.family)}/{prefix_length(length or default, one.family)}"
    route = Route(
        0,
        family_of(one.family),
        destination,
        _gateway(one.gateway, one.family),
        canonical_ip(one.source, one.family) if one.source else "",
        one.scope & 0xFF,
        flags=one.flags & 0xFF,
        mtu=one.mtu,
        priority=one.metric,
        table=one.table or TABLE_MAIN,
        kind=one.type or RTN_UNICAST,
        hops=tuple(_hop(hop, one.family, links) for hop in one.hops),
    )
    if route.hops or route.discards:
        return route
    return replace(route, index=find_link(links, one.device).index)


def _hop(hop: types_pb2.Route.Hop, family: int, links: dict[str, Link]) -> Hop:
    if not 1 <= hop.weight <= _MAX_WEIGHT:
        raise InvalidArgument(f"invalid weight {hop.weight} of a route (1 to {_MAX_WEIGHT})")
    return Hop(find_link(links, hop.device).index, _gateway(hop.gateway, family), hop.weight, hop.flags & 0xFF)


def _gateway(text: str, family: int) -> str:
    """A gateway's address, which an IPv4 route may have of the other family."""
    if not text:
        return ""
    return canonical_ip(text, types_pb2.v6 if ":" in text else family)
