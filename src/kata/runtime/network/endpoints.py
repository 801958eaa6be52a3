"""Which interfaces of a network namespace a virtual machine gets, and what the guest has to know of each: pure.

An endpoint is an interface that a CNI plugin, Docker or somebody by hand has made and given an address. The guest gets
one of the same name, hardware address, addresses and routes (Kata's network model).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kata.errors import InvalidArgument, Unimplemented
from kata.linux.rtnetlink import (
    IFF_LOOPBACK,
    IFF_NOARP,
    NUD_PERMANENT,
    RTPROT_KERNEL,
    SCOPE_LINK,
    Address,
    Link,
    Neighbour,
    Route,
)
from kata.protocols import agent_pb2, types_pb2
from kata.protocols.interface import PHYSICAL

#: Kinds of interfaces whose packets can be passed on as they are, by traffic control.
_PASSED_ON = frozenset(("veth", "macvlan", "ipvlan", "vlan", "bridge", "dummy"))
#: What somebody made for a machine: it is connected as it is.
_CONNECTED = frozenset(("tun", "macvtap"))
#: Where network cards are: they are given as they are.
_BUSES = frozenset(("pci", "virtio"))
#: Interfaces that a machine can have at most: each takes a slot of its buses.
MAXIMUM = 16
_AF_INET6 = 10


@dataclass(frozen=True)
class Snapshot:
    """What is in a network namespace at one moment."""

    links: Sequence[Link]
    addresses: Sequence[Address]
    routes: Sequence[Route]
    neighbours: Sequence[Neighbour]


@dataclass(frozen=True)
class Rates:
    """How fast a machine's interface may be, in bits a second; 0 for as fast as it can."""

    receive: int = 0
    send: int = 0


NO_LIMIT = Rates()


@dataclass(frozen=True)
class Endpoint:
    """One interface that the guest gets.

    Attributes:
        link: as it is in the namespace.
        addresses, routes, neighbours: of that interface; what the kernels make by themselves is not among them.
    """

    link: Link
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    neighbours: tuple[Neighbour, ...]

    @property
    def id(self) -> str:
        """The device's name in the machine."""
        return f"net{self.link.index}"

    @property
    def is_tap(self) -> bool:
        """Whether the interface is a tap or macvtap device itself, so that none has to be put beside it."""
        return self.link.kind in _CONNECTED

    @property
    def is_macvtap(self) -> bool:
        """Whether it is one with a device node of its own."""
        return self.link.kind == "macvtap"

    @property
    def is_nic(self) -> bool:
        """Whether it is a network card of the host, which the machine gets itself."""
        return not self.link.kind and self.link.bus in _BUSES

    @property
    def tap(self) -> str:
        """The name of the tap device that the machine is connected to."""
        return self.link.name if self.is_tap else f"tap{self.link.index}_kata"


def endpoints(snapshot: Snapshot, namespace: str) -> list[Endpoint]:
    """The interfaces that the guest gets, by name. Loopback, and what has no address, stays where it is.

    Args:
        namespace: for errors.

    Raises:
        Unimplemented: an interface with an address is of a kind that cannot be passed on.
        InvalidArgument: there are too many.
    """
    found = []
    for link in sorted(snapshot.links, key=lambda link: link.name):
        addresses = [address for address in snapshot.addresses if address.index == link.index]
        if link.flags & IFF_LOOPBACK or not any(address.scope < SCOPE_LINK for address in addresses):
            continue
        endpoint = Endpoint(
            link,
            tuple(address for address in addresses if address.scope < SCOPE_LINK),
            tuple(route for route in snapshot.routes if _is_ours(route, link)),
            tuple(
                neighbour
                for neighbour in snapshot.neighbours
                if neighbour.index == link.index and neighbour.state & NUD_PERMANENT and neighbour.lladdr
            ),
        )
        if link.kind not in _PASSED_ON and link.kind not in _CONNECTED and not endpoint.is_nic:
            kind = f"a {link.kind} interface" if link.kind else f"a device on the bus {link.bus or 'of no name'}"
            raise Unimplemented(
                f"network namespace {namespace}: {link.name} is {kind}, which a virtual machine cannot be given",
                hint=f"supported kinds: {', '.join(sorted(_PASSED_ON))}, tap and macvtap devices, PCI network cards",
            )
        found.append(endpoint)
    if len(found) > MAXIMUM:
        raise InvalidArgument(
            f"network namespace {namespace} has {len(found)} interfaces, a virtual machine takes {MAXIMUM}"
        )
    return found


def _is_ours(route: Route, link: Link) -> bool:
    return route.index == link.index and route.protocol != RTPROT_KERNEL


def interface_message(endpoint: Endpoint, pci_path: str) -> types_pb2.Interface:
    """What the agent is told of an interface, `pci_path` being where the guest finds the device."""
    link = endpoint.link
    return types_pb2.Interface(
        device=link.name,
        name=link.name,
        IPAddresses=[
            types_pb2.IPAddress(family=_family(one.family), address=one.address, mask=str(one.prefix))
            for one in endpoint.addresses
        ],
        mtu=link.mtu,
        hwAddr=link.mac,
        devicePath=pci_path,
        type=PHYSICAL if endpoint.is_nic else link.kind,
        raw_flags=link.flags & IFF_NOARP,
    )


def routes_message(all_endpoints: Iterable[Endpoint]) -> agent_pb2.Routes:
    """The routes of all interfaces: the agent replaces those it has."""
    return agent_pb2.Routes(
        Routes=[
            types_pb2.Route(
                dest=route.destination,
                gateway=route.gateway,
                device=endpoint.link.name,
                source=route.source,
                scope=route.scope,
                family=_family(route.family),
                flags=route.flags,
                mtu=route.mtu,
            )
            for endpoint in all_endpoints
            for route in endpoint.routes
        ]
    )


def neighbours_message(all_endpoints: Iterable[Endpoint]) -> agent_pb2.ARPNeighbors:
    """The neighbours that were entered by hand, which nothing could find out anew."""
    return agent_pb2.ARPNeighbors(
        ARPNeighbors=[
            types_pb2.ARPNeighbor(
                toIPAddress=types_pb2.IPAddress(family=_family(one.family), address=one.address),
                device=endpoint.link.name,
                lladdr=one.lladdr,
                state=one.state,
                flags=one.flags,
            )
            for endpoint in all_endpoints
            for one in endpoint.neighbours
        ]
    )


def _family(family: int) -> types_pb2.IPFamily:
    return types_pb2.v6 if family == _AF_INET6 else types_pb2.v4
