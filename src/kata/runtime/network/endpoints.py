"""The interfaces of a network namespace that the guest gets, and what the agent is told of each: pure.

An endpoint is an interface with an address, created by a CNI plugin, Docker or by hand. The guest gets one with the
same name, hardware address, addresses and routes (Kata's network model).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kata.errors import InvalidArgument, Unimplemented
from kata.linux.routing import RTPROT_KERNEL, Route
from kata.linux.rtnetlink import (
    IFF_LOOPBACK,
    IFF_NOARP,
    NUD_PERMANENT,
    SCOPE_LINK,
    Address,
    Link,
    Neighbour,
)
from kata.protocols import agent_pb2, types_pb2
from kata.protocols.interface import PHYSICAL

#: Kinds of interfaces whose frames traffic control can redirect unchanged.
_REDIRECTED = frozenset(("veth", "macvlan", "ipvlan", "vlan", "bridge", "dummy"))
#: Kinds that are made for a VM, and are connected directly.
_CONNECTED = frozenset(("tun", "macvtap"))
#: Buses of physical NICs.
_BUSES = frozenset(("pci", "virtio"))
#: The maximum of interfaces of a VM: each takes a PCI slot.
MAX_INTERFACES = 16
_AF_INET6 = 10
_LOOPBACK = "lo"
#: The addresses that a loopback interface has by itself.
_OF_LOOPBACK = frozenset(("127.0.0.1", "::1"))


@dataclass(frozen=True)
class Snapshot:
    """What is in a network namespace at one moment."""

    links: Sequence[Link]
    addresses: Sequence[Address]
    routes: Sequence[Route]
    neighbours: Sequence[Neighbour]
    rules: Sequence[bytes] = ()


@dataclass(frozen=True)
class Rates:
    """Rate limits of an interface as the guest sees it, in bits per second; 0 for none."""

    receive: int = 0
    send: int = 0


NO_LIMIT = Rates()


@dataclass(frozen=True)
class Endpoint:
    """One interface that the guest gets.

    Attributes:
        link: as it is in the namespace.
        addresses, routes, neighbours: of that interface, without those that kernels create by themselves.
        sysctls: of that interface, as far as somebody has set them.
    """

    link: Link
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    neighbours: tuple[Neighbour, ...]
    sysctls: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The id of the device in the VM."""
        return f"net{self.link.index}"

    @property
    def is_tap(self) -> bool:
        """Whether the interface itself is a tap or macvtap device, to which the VM is connected directly."""
        return self.link.kind in _CONNECTED

    @property
    def is_macvtap(self) -> bool:
        """Whether it is a macvtap device, which has a device node."""
        return self.link.kind == "macvtap"

    @property
    def is_nic(self) -> bool:
        """Whether it is a physical NIC, which the VM gets by VFIO."""
        return not self.link.kind and self.link.bus in _BUSES

    @property
    def tap(self) -> str:
        """The name of the tap device to which the VM is connected."""
        return self.link.name if self.is_tap else f"tap{self.link.index}_kata"


def endpoints(snapshot: Snapshot, namespace: str) -> list[Endpoint]:
    """The interfaces that the guest gets, sorted by name. Loopback, and those without an address, are left out.

    Args:
        snapshot: of the namespace.
        namespace: its path, for errors.

    Raises:
        Unimplemented: an interface with an address is of an unsupported kind.
        InvalidArgument: there are more than MAX_INTERFACES.
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
        if link.kind not in _REDIRECTED and link.kind not in _CONNECTED and not endpoint.is_nic:
            kind = f"a {link.kind} interface" if link.kind else f"a device on bus {link.bus or '(unknown)'}"
            raise Unimplemented(
                f"network namespace {namespace}: {link.name} is {kind}, which is not supported",
                hint=f"supported kinds: {', '.join(sorted(_REDIRECTED))}, tap, macvtap, physical NICs on PCI",
            )
        found.append(endpoint)
    if len(found) > MAX_INTERFACES:
        raise InvalidArgument(
            f"network namespace {namespace} has {len(found)} interfaces; the maximum is {MAX_INTERFACES}"
        )
    return found


def _is_ours(route: Route, link: Link) -> bool:
    return route.index == link.index and route.protocol != RTPROT_KERNEL


def interface_message(endpoint: Endpoint, pci_path: str) -> types_pb2.Interface:
    """An interface for the agent, which finds the device at `pci_path`."""
    link = endpoint.link
    return types_pb2.Interface(
        device=link.name,
        name=link.name,
        IPAddresses=[
            types_pb2.IPAddress(family=ip_family(one.family), address=one.address, mask=str(one.prefix))
            for one in endpoint.addresses
        ],
        mtu=link.mtu,
        hwAddr=link.mac,
        devicePath=pci_path,
        type=PHYSICAL if endpoint.is_nic else link.kind,
        raw_flags=link.flags & IFF_NOARP,
        sysctls=endpoint.sysctls,
    )


def loopback_message(snapshot: Snapshot, sysctls: Mapping[str, str]) -> types_pb2.Interface:
    """The loopback interface for the agent: the addresses that it has not by itself.

    Args:
        snapshot: of the namespace.
        sysctls: those that somebody has set, of the namespace as a whole.
    """
    loopback = {link.index for link in snapshot.links if link.flags & IFF_LOOPBACK}
    return types_pb2.Interface(
        device=_LOOPBACK,
        name=_LOOPBACK,
        IPAddresses=[
            types_pb2.IPAddress(
                family=ip_family(one.family), address=one.address, mask=str(one.prefix), scope=one.scope
            )
            for one in snapshot.addresses
            if one.index in loopback and one.address not in _OF_LOOPBACK
        ],
        sysctls=sysctls,
    )


def neighbours_message(all_endpoints: Iterable[Endpoint]) -> agent_pb2.ARPNeighbors:
    """The permanent neighbours of all interfaces for the agent; they cannot be discovered."""
    return agent_pb2.ARPNeighbors(
        ARPNeighbors=[
            types_pb2.ARPNeighbor(
                toIPAddress=types_pb2.IPAddress(family=ip_family(one.family), address=one.address),
                device=endpoint.link.name,
                lladdr=one.lladdr,
                state=one.state,
                flags=one.flags,
            )
            for endpoint in all_endpoints
            for one in endpoint.neighbours
        ]
    )


def ip_family(family: int) -> types_pb2.IPFamily:
    """The protocol's name of an address family (socket.AF_INET, AF_INET6)."""
    return types_pb2.v6 if family == _AF_INET6 else types_pb2.v4
