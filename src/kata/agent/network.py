"""The guest's network interfaces, set up as the host says.

The guest has one network namespace, which all its containers share. An interface is a device that the host has plugged
in: identified by its hardware address, and given the name, addresses and routes that the pod's interface has on the
host.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Callable, Mapping

from kata.agent.devices.find import Finder
from kata.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from kata.linux import rtnetlink, sysctl
from kata.linux.netlink import GROUP_LINK, Netlink
from kata.linux.rtnetlink import IFF_NOARP, SCOPE_LINK, Address, Link, Neighbour
from kata.protocols import agent_pb2, types_pb2
from kata.protocols.interface import PHYSICAL

log = logging.getLogger(__name__)

_NAME = re.compile(r"[^\s/:.%\0][^\s/:%\0]{0,14}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
#: The name for a moment of an interface whose name another one is to get.
_TEMPORARY_NAME = "kata-moved{}"


async def update_interface(wanted: types_pb2.Interface, devices: Finder) -> types_pb2.Interface:
    """Set up an interface, and wait for it if it is not there yet.

    It is found by its PCI path if there is one, since its hardware address may have been changed on the host after it
    was plugged in: container engines do so. Else it is found by that address.

    Args:
        wanted: name, addresses, MTU and flags.
        devices: finds the NIC; its timeout is that for the interface.

    Returns:
        The interface as it is now.

    Raises:
        InvalidArgument: the name, or a hardware or IP address, is invalid.
        DeadlineExceeded: no such interface appears.
        FailedPrecondition: the kernel refuses; the interface is down then.
    """
    if not _NAME.fullmatch(wanted.name):
        raise InvalidArgument(f"invalid interface name {wanted.name!r}")
    mac = wanted.hwAddr.lower()
    if not _MAC.fullmatch(mac):
        raise InvalidArgument(f"interface {wanted.name}: invalid hardware address {wanted.hwAddr!r}")
    addresses = [parse_address(one, 0) for one in wanted.IPAddresses]
    if wanted.devicePath:
        name = await devices.interface(wanted.devicePath)
        link = await _appears(lambda link: link.name == name, f"{wanted.name}: no interface {name}", devices.timeout)
    else:
        what = f"{wanted.name}: no device with the hardware address {mac}"
        link = await _appears(lambda link: link.mac == mac, what, devices.timeout)
    with Netlink() as netlink:
        try:
            _set_up(netlink, link, wanted, addresses)
        except OSError as error:
            raise FailedPrecondition(f"interface {wanted.name}: {reason(error)}") from error
        return show_interface(netlink, link.index)


def _set_up(netlink: Netlink, link: Link, wanted: types_pb2.Interface, addresses: list[Address]) -> None:
    rtnetlink.change_link(netlink, link.index, up=False)
    for old in rtnetlink.addresses(netlink):
        if old.index == link.index:
            rtnetlink.remove_address(netlink, old)
    if link.name != wanted.name:
        for other in rtnetlink.links(netlink):
            if other.name == wanted.name:
                rtnetlink.change_link(netlink, other.index, up=False)
                rtnetlink.change_link(netlink, other.index, name=_TEMPORARY_NAME.format(other.index))
        rtnetlink.change_link(netlink, link.index, name=wanted.name)
    if wanted.type != PHYSICAL and link.mac != wanted.hwAddr.lower():
        rtnetlink.change_link(netlink, link.index, mac=wanted.hwAddr)
    arp = not wanted.raw_flags & IFF_NOARP
    rtnetlink.change_link(netlink, link.index, mtu=wanted.mtu, arp=arp, up=True)
    # Before the addresses: some decide what becomes of those.
    set_sysctls(wanted.sysctls)
    for address in addresses:
        rtnetlink.add_address(netlink, Address(link.index, address.family, address.address, address.prefix))


def set_sysctls(wanted: Mapping[str, str]) -> None:
    """Set sysctls, those that change others first; one that this kernel does not have is logged."""
    for name in sorted(wanted, key=lambda name: (name.count("/"), name)):
        try:
            sysctl.write(name, wanted[name])
        except (OSError, ValueError) as error:
            log.warning("cannot set %s to %r: %s", name, wanted[name], getattr(error, "strerror", None) or error)


async def _appears(is_it: Callable[[Link], bool], missing: str, timeout: float) -> Link:
    """Wait for the interface for which `is_it` holds (rtnetlink(7)).

    Raises:
        DeadlineExceeded: it does not appear.
    """
    with Netlink(GROUP_LINK) as events, Netlink() as netlink:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        loop.add_reader(events.fileno(), changed.set)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    for link in rtnetlink.links(netlink):
                        if is_it(link):
                            return link
                    await changed.wait()
                    changed.clear()
                    events.drain()
        except TimeoutError:
            raise DeadlineExceeded(f"interface {missing} appeared within {timeout:g} s") from None
        finally:
            loop.remove_reader(events.fileno())


def add_neighbours(wanted: agent_pb2.ARPNeighbors) -> None:
    """Add neighbours, permanent unless their state says otherwise.

    Raises:
        InvalidArgument: an entry has an invalid address, or names an interface that does not exist.
        FailedPrecondition: the kernel refuses.
    """
    with Netlink() as netlink:
        by_name = {link.name: link for link in rtnetlink.links(netlink)}
        for one in wanted.ARPNeighbors:
            link = find_link(by_name, one.device)
            if one.lladdr and not _MAC.fullmatch(one.lladdr):
                raise InvalidArgument(f"neighbour {one.toIPAddress.address}: invalid hardware address {one.lladdr!r}")
            address = canonical_ip(one.toIPAddress.address, one.toIPAddress.family)
            state = one.state or rtnetlink.NUD_PERMANENT
            family = family_of(one.toIPAddress.family)
            entry = Neighbour(link.index, family, address, one.lladdr.lower(), state, one.flags & 0xFF)
            try:
                rtnetlink.add_neighbour(netlink, entry)
            except OSError as error:
                raise FailedPrecondition(reason(error)) from error


def list_interfaces() -> agent_pb2.Interfaces:
    """All interfaces, loopback included."""
    with Netlink() as netlink:
        return agent_pb2.Interfaces(
            Interfaces=[show_interface(netlink, link.index) for link in rtnetlink.links(netlink)],
        )


def show_interface(netlink: Netlink, index: int) -> types_pb2.Interface:
    """The interface as it is now."""
    link = next(one for one in rtnetlink.links(netlink) if one.index == index)
    return types_pb2.Interface(
        device=link.name,
        name=link.name,
        IPAddresses=[
            types_pb2.IPAddress(
                family=types_pb2.v6 if one.family == socket.AF_INET6 else types_pb2.v4,
                address=one.address,
                mask=str(one.prefix),
            )
            for one in rtnetlink.addresses(netlink)
            if one.index == index and one.scope < SCOPE_LINK
        ],
        mtu=link.mtu,
        hwAddr=link.mac,
        type=link.kind,
        raw_flags=link.flags & IFF_NOARP,
    )


def family_of(family: int) -> int:
    """The address family (socket.AF_INET, AF_INET6) of one of types.IPFamily."""
    return socket.AF_INET6 if family == types_pb2.v6 else socket.AF_INET


def canonical_ip(text: str, family: int) -> str:
    """Return an address in its canonical form.

    Raises:
        InvalidArgument: it is not an address of the family.
    """
    try:
        return socket.inet_ntop(family_of(family), socket.inet_pton(family_of(family), text))
    except (OSError, ValueError):
        raise InvalidArgument(f"invalid {'IPv6' if family == types_pb2.v6 else 'IPv4'} address {text!r}") from None


def prefix_length(text: str, family: int) -> int:
    """Return a prefix length.

    Raises:
        InvalidArgument: it is none of the family.
    """
    maximum = 128 if family == types_pb2.v6 else 32
    if not (text.isascii() and text.isdigit() and int(text[:4]) <= maximum):
        raise InvalidArgument(f"invalid prefix length {text!r} (0 to {maximum})")
    return int(text[:4])


def parse_address(one: types_pb2.IPAddress, index: int) -> Address:
    """An address of the interface `index`.

    Raises:
        InvalidArgument: address or prefix length is invalid.
    """
    return Address(
        index,
        family_of(one.family),
        canonical_ip(one.address, one.family),
        prefix_length(one.mask, one.family),
        one.scope & 0xFF,
    )


def find_link(links: dict[str, Link], name: str) -> Link:
    """The interface of a name.

    Raises:
        InvalidArgument: there is none.
    """
    try:
        return links[name]
    except KeyError:
        raise InvalidArgument(f"interface {name!r} does not exist") from None


def reason(error: OSError) -> str:
    """What the kernel refused, and why."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
