"""Network interfaces, addresses, neighbours and the traffic control that joins two interfaces.

Sources: rtnetlink(7), include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour,pkt_sched,pkt_cls}.h, tc-mirred(8),
tc-u32(8), tc-tbf(8).
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

from kata.linux.netlink import (
    CREATE,
    EXCL,
    REPLACE,
    Message,
    Netlink,
    attribute,
    attributes,
    nest,
    number,
    text,
    to_ip,
    to_number,
)

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWNEIGH, _GETNEIGH = 28, 30
_NEWQDISC, _DELQDISC = 36, 37
_NEWTFILTER = 44

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_NEIGH = struct.Struct("=BxxxiHBB")
_TC = struct.Struct("=BxxxiIII")

IFF_UP, IFF_LOOPBACK, IFF_NOARP = 0x1, 0x8, 0x80
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_LINKINFO = 1, 3, 4, 5, 18
_IFLA_NUM_TX_QUEUES = 31
_IFLA_PARENT_DEV_NAME, _IFLA_PARENT_DEV_BUS_NAME = 56, 57
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_AF_SPEC, _IFLA_INET6_ADDR_GEN_MODE = 26, 8
_IFLA_MACVLAN_MODE, _MACVLAN_MODE_PASSTHRU = 1, 8
_ADDR_GEN_NONE = b"\1"
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD = 0x02
_NDA_DST, _NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80
SCOPE_LINK = 253

_TC_H_ROOT = 0xFFFFFFFF
_TC_H_INGRESS = 0xFFFFFFF1
_INGRESS_HANDLE = 0xFFFF0000
_TCA_KIND, _TCA_OPTIONS = 1, 2
_ETH_P_ALL = 0x0003
_FILTER_PRIORITY = 1
_TCA_U32_SEL, _TCA_U32_ACT = 5, 7
_U32_TERMINAL = 1
_SELECTOR = struct.Struct("=BBBxHHHhI")
#: mask, value, offset, mask of the offset: all 0, which matches every packet.
_MATCH_ALL = struct.pack("=IIii", 0, 0, 0, 0)
_TCA_ACT_KIND, _TCA_ACT_OPTIONS = 1, 2
_TCA_MIRRED_PARMS = 2
#: index, capab, action, refcnt, bindcnt, eaction, ifindex.
_MIRRED = struct.Struct("=IIiiiiI")
#: Handle of the qdisc of `limit_rate`, so that another's is never mistaken for it.
_LIMIT_HANDLE = 0x4B410000
_TCA_TBF_PARMS, _TCA_TBF_RATE64, _TCA_TBF_BURST = 1, 4, 6
#: tc_tbf_qopt: (cell_log, linklayer, overhead, cell_align, mpu, rate), the same for the peak; limit, buffer, mtu.
_TBF = struct.Struct("=BBHhHI BBHhHI III")
#: With a link layer the kernel computes the rate table itself.
_LINKLAYER_ETHERNET = 1
#: The burst: a hundredth of a second's bytes, and at least the largest packet before segmentation.
_BURST_S, _MIN_BURST = 0.01, 64 << 10
#: Of traffic that may be queued.
_QUEUE_S = 0.1
_MAX_U32 = (1 << 32) - 1
_TC_ACT_STOLEN = 4
_EGRESS_REDIRECT = 1


@dataclass(frozen=True)
class Link:
    """A network interface.

    Attributes:
        kind: as `ip -d link` names it ("veth", "macvlan", "tun", …); "" for a hardware device.
        mac: lower case, or "".
        flags: IFF_*.
        queues: transmit queues.
        bus, parent: of the hardware device, such as "pci" and "0000:3b:00.0"; "" for a software device, and before
            Linux 5.14.
    """

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    flags: int
    queues: int = 1
    bus: str = ""
    parent: str = ""


@dataclass(frozen=True)
class Address:
    """An IP address of an interface. `family` is socket.AF_INET or AF_INET6."""

    index: int
    family: int
    address: str
    prefix: int
    scope: int = 0


@dataclass(frozen=True)
class Neighbour:
    """An entry of the ARP or neighbour discovery table; `state` is NUD_*."""

    index: int
    family: int
    address: str
    lladdr: str
    state: int
    flags: int = 0


def links(netlink: Netlink) -> list[Link]:
    """All interfaces of the namespace. Raises OSError."""
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return [parse_link(message) for message in netlink.dump("list interfaces", _GETLINK, body)]


def parse_link(message: Message) -> Link:
    """The interface in a message of RTM_GETLINK or of `netlink.GROUP_LINK`."""
    _, _, index, flags, _ = _IFINFO.unpack_from(message.body)
    found = attributes(message.body[_IFINFO.size :])
    kind = attributes(found.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b"")
    return Link(
        index,
        _text(found.get(_IFLA_IFNAME, b"")),
        _text(kind),
        found.get(_IFLA_ADDRESS, b"").hex(":"),
        to_number(found.get(_IFLA_MTU, b"")),
        flags,
        to_number(found.get(_IFLA_NUM_TX_QUEUES, b"")) or 1,
        _text(found.get(_IFLA_PARENT_DEV_BUS_NAME, b"")),
        _text(found.get(_IFLA_PARENT_DEV_NAME, b"")),
    )


def addresses(netlink: Netlink) -> list[Address]:
    """All addresses of the namespace. Raises OSError."""
    found = []
    for message in netlink.dump("list addresses", _GETADDR, _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        family, prefix, _, scope, index = _IFADDR.unpack_from(message.body)
        values = attributes(message.body[_IFADDR.size :])
        # On a point-to-point link, IFA_ADDRESS is the peer's.
        address = to_ip(family, values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS, b""))
        if address:
            found.append(Address(index, family, address, prefix, scope))
    return found


def neighbours(netlink: Netlink) -> list[Neighbour]:
    """All neighbours of the namespace. Raises OSError."""
    found = []
    for message in netlink.dump("list neighbours", _GETNEIGH, _NEIGH.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        family, index, state, flags, _ = _NEIGH.unpack_from(message.body)
        values = attributes(message.body[_NEIGH.size :])
        address = to_ip(family, values.get(_NDA_DST, b""))
        if address:
            lladdr = values.get(_NDA_LLADDR, b"").hex(":")
            found.append(Neighbour(index, family, address, lladdr, state, flags))
    return found


def change_link(
    netlink: Netlink,
    index: int,
    *,
    up: bool | None = None,
    arp: bool | None = None,
    name: str = "",
    mtu: int = 0,
    mac: str = "",
) -> None:
    """Change attributes of an interface; those that are not given stay.

    Args:
        netlink: of the interface's namespace.
        index: of the interface.
        up: whether it is up; None to leave it.
        arp: whether it uses ARP; None to leave it.
        name: new name; "" to keep it.
        mtu: new MTU in bytes; 0 to keep it.
        mac: new hardware address, e.g. "02:00:00:00:00:01"; "" to keep it.

    Raises:
        OSError: the kernel refuses.
    """
    flags = mask = 0
    if up is not None:
        mask |= IFF_UP
        flags |= IFF_UP if up else 0
    if arp is not None:
        mask |= IFF_NOARP
        flags |= 0 if arp else IFF_NOARP
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, mask)
    if name:
        body += text(_IFLA_IFNAME, name)
    if mtu:
        body += number(_IFLA_MTU, mtu)
    if mac:
        body += attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    netlink.request(f"change interface {name or index}", _NEWLINK, body)


def add_macvtap(netlink: Netlink, name: str, index: int, lower: int) -> None:
    """Make a macvtap interface on top of another one (mode passthru), down, with the hardware address of that.

    Args:
        netlink: of the namespace.
        name: of the new interface.
        index: of the new interface, which its device node is called by.
        lower: index of the other one.

    Raises:
        OSError: EEXIST if name or index are taken, EBUSY or EINVAL if the other one has a macvtap already.
    """
    data = nest(_IFLA_INFO_DATA, number(_IFLA_MACVLAN_MODE, _MACVLAN_MODE_PASSTHRU))
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0) + text(_IFLA_IFNAME, name) + number(_IFLA_LINK, lower)
    body += nest(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "macvtap"), data)
    netlink.request(f"make macvtap interface {name}", _NEWLINK, body, CREATE | EXCL)
    # It has the VM's hardware address: an IPv6 address that is derived from it would be the VM's.
    spec = nest(_IFLA_AF_SPEC, nest(socket.AF_INET6, attribute(_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE)))
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0) + spec
    try:
        netlink.request(f"keep IPv6 from {name}", _NEWLINK, body)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            remove_link(netlink, index)
            raise


def remove_link(netlink: Netlink, index: int) -> None:
    """Remove an interface. Idempotent.

    Raises:
        OSError: the kernel refuses, for another reason than that there is no such interface.
    """
    try:
        netlink.request(f"remove interface {index}", _DELLINK, _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def add_address(netlink: Netlink, address: Address) -> None:
    """Add an address to an interface, usable at once: duplicate detection is up to the CNI plugin. Raises OSError."""
    netlink.request(f"add address {address.address}/{address.prefix}", _NEWADDR, _address(address), CREATE | EXCL)


def remove_address(netlink: Netlink, address: Address) -> None:
    """Remove an address from an interface. Raises OSError."""
    netlink.request(f"remove address {address.address}/{address.prefix}", _DELADDR, _address(address))


def _address(address: Address) -> bytes:
    packed = socket.inet_pton(address.family, address.address)
    flags = _IFA_F_NODAD if address.family == socket.AF_INET6 else 0
    body = _IFADDR.pack(address.family, address.prefix, 0, address.scope, address.index)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    return body + (number(_IFA_FLAGS, flags) if flags else b"")


def add_neighbour(netlink: Netlink, neighbour: Neighbour) -> None:
    """Add or replace a neighbour. Raises OSError."""
    body = _NEIGH.pack(neighbour.family, neighbour.index, neighbour.state, neighbour.flags, 0)
    body += attribute(_NDA_DST, socket.inet_pton(neighbour.family, neighbour.address))
    if neighbour.lladdr:
        body += attribute(_NDA_LLADDR, bytes.fromhex(neighbour.lladdr.replace(":", "")))
    netlink.request(f"add neighbour {neighbour.address}", _NEWNEIGH, body, CREATE | REPLACE)


def redirect(netlink: Netlink, source: int, target: int) -> None:
    """Redirect all packets that arrive at one interface out of another: an ingress qdisc with one filter.

    Args:
        netlink: of the namespace of both.
        source: index of the interface at which packets arrive.
        target: index of the interface that sends them.

    Raises:
        OSError: the kernel refuses.
    """
    remove_redirect(netlink, source)
    body = _TC.pack(socket.AF_UNSPEC, source, _INGRESS_HANDLE, _TC_H_INGRESS, 0) + text(_TCA_KIND, "ingress")
    netlink.request(f"add an ingress qdisc to interface {source}", _NEWQDISC, body, CREATE | EXCL)
    protocol = socket.htons(_ETH_P_ALL)
    mirred = _MIRRED.pack(0, 0, _TC_ACT_STOLEN, 0, 0, _EGRESS_REDIRECT, target)
    action = nest(1, text(_TCA_ACT_KIND, "mirred"), nest(_TCA_ACT_OPTIONS, attribute(_TCA_MIRRED_PARMS, mirred)))
    selector = _SELECTOR.pack(_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + _MATCH_ALL
    options = nest(_TCA_OPTIONS, attribute(_TCA_U32_SEL, selector), nest(_TCA_U32_ACT, action))
    body = _TC.pack(socket.AF_UNSPEC, source, 0, _INGRESS_HANDLE, _FILTER_PRIORITY << 16 | protocol)
    netlink.request(
        f"redirect interface {source} to {target}", _NEWTFILTER, body + text(_TCA_KIND, "u32") + options, CREATE | EXCL
    )


def remove_redirect(netlink: Netlink, source: int) -> None:
    """Undo `redirect`. Idempotent, even without the interface. Raises OSError."""
    _remove_qdisc(netlink, f"remove the ingress qdisc of interface {source}", source, _INGRESS_HANDLE, _TC_H_INGRESS)


def limit_rate(netlink: Netlink, index: int, rate: int) -> None:
    """Limit an interface's transmit rate by a token bucket filter as its root qdisc.

    Args:
        netlink: of the interface's namespace.
        index: of the interface.
        rate: in bits per second.

    Raises:
        OSError: EEXIST if it has another root qdisc than the default one.
    """
    speed = max(1, rate // 8)
    burst = min(max(_MIN_BURST, int(speed * _BURST_S)), _MAX_U32)
    waiting = min(burst + int(speed * _QUEUE_S), _MAX_U32)
    parameters = _TBF.pack(0, _LINKLAYER_ETHERNET, 0, 0, 0, min(speed, _MAX_U32), 0, 0, 0, 0, 0, 0, waiting, 0, 0)
    options = [attribute(_TCA_TBF_PARMS, parameters), number(_TCA_TBF_BURST, burst)]
    if speed > _MAX_U32:
        options.append(attribute(_TCA_TBF_RATE64, struct.pack("=Q", speed)))
    body = _TC.pack(socket.AF_UNSPEC, index, _LIMIT_HANDLE, _TC_H_ROOT, 0) + text(_TCA_KIND, "tbf")
    netlink.request(
        f"limit the rate of interface {index}", _NEWQDISC, body + nest(_TCA_OPTIONS, *options), CREATE | EXCL
    )


def remove_limit(netlink: Netlink, index: int) -> None:
    """Undo `limit_rate`. Idempotent, even without the interface. Raises OSError."""
    _remove_qdisc(netlink, f"remove the limit of interface {index}", index, _LIMIT_HANDLE, _TC_H_ROOT)


def _remove_qdisc(netlink: Netlink, what: str, index: int, handle: int, parent: int) -> None:
    try:
        netlink.request(what, _DELQDISC, _TC.pack(socket.AF_UNSPEC, index, handle, parent, 0))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            raise


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="replace")
