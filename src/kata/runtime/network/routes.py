"""The routes and rules that the guest gets: all of the namespace's that lead over its interfaces, or nowhere. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kata.linux.routing import RTN_UNICAST, RTPROT_KERNEL, TABLE_MAIN, Hop, Route
from kata.linux.rtnetlink import IFF_LOOPBACK
from kata.protocols import agent_pb2, types_pb2
from kata.runtime.network.endpoints import Endpoint, Snapshot, ip_family

#: RTN_*: unicast, local (an address range that is the host's own), and those that discard.
_KINDS = frozenset((1, 2, 6, 7, 8, 9))


def routes_message(snapshot: Snapshot, having: Iterable[Endpoint]) -> agent_pb2.Routes:
    """Routes and rules for the agent, which replaces those that it has.

    Args:
        snapshot: of the namespace.
        having: the interfaces that the guest has. Those of physical NICs are not in the namespace any more, so their
            routes are as they were.
    """
    having = [*having]
    names = _names(snapshot, having)
    of_nics = (route for endpoint in having if endpoint.is_nic for route in endpoint.routes)
    # At first they are in both.
    routes = dict.fromkeys((*of_nics, *_made(snapshot)))
    messages = (_message(route, names) for route in routes)
    return agent_pb2.Routes(Routes=filter(None, messages), Rules=snapshot.rules)


def left_out(snapshot: Snapshot, having: Iterable[Endpoint]) -> list[str]:
    """The routes that the guest cannot have: over an interface that it lacks, or of another kind.

    Args:
        snapshot: of the namespace.
        having: the interfaces that the guest has.
    """
    names = _names(snapshot, having)
    return [str(route) for route in _made(snapshot) if _message(route, names) is None]


def _made(snapshot: Snapshot) -> Iterable[Route]:
    """The routes that the kernel has not made by itself."""
    return (route for route in snapshot.routes if route.protocol != RTPROT_KERNEL)


def _names(snapshot: Snapshot, having: Iterable[Endpoint]) -> dict[int, str]:
    """The guest's interfaces, by index."""
    loopback = {link.index: link.name for link in snapshot.links if link.flags & IFF_LOOPBACK}
    return loopback | {endpoint.link.index: endpoint.link.name for endpoint in having}


def _message(route: Route, names: Mapping[int, str]) -> types_pb2.Route | None:
    """The route for the agent; None if it cannot have it.

    Args:
        route: of the namespace.
        names: of the guest's interfaces, by index.
    """
    hops = [_hop(hop, names[hop.index]) for hop in route.hops if hop.index in names]
    if route.kind not in _KINDS or not (hops or route.discards or route.index in names):
        return None
    return types_pb2.Route(
        dest=route.destination,
        gateway=route.gateway,
        device="" if hops or route.discards else names[route.index],
        source=route.source,
        scope=route.scope,
        family=ip_family(route.family),
        flags=route.flags,
        mtu=route.mtu,
        metric=route.priority,
        table=route.table if route.table != TABLE_MAIN else 0,
        type=route.kind if route.kind != RTN_UNICAST else 0,
        hops=hops,
    )


def _hop(hop: Hop, device: str) -> types_pb2.Route.Hop:
    return types_pb2.Route.Hop(device=device, gateway=hop.gateway, weight=hop.weight, flags=hop.flags)
