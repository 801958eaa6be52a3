"""The guest's loopback interface, and the sysctls of its network namespace, as the host says."""

from __future__ import annotations

from kata.agent.network import parse_address, reason, set_sysctls, show_interface
from kata.errors import FailedPrecondition
from kata.linux import rtnetlink
from kata.linux.netlink import Netlink
from kata.linux.rtnetlink import Address
from kata.protocols import types_pb2

#: Its name and index in every network namespace.
LOOPBACK = "lo"
_INDEX = 1


class Loopback:
    """The loopback interface: it keeps its own addresses, and those that a privileged container has added."""

    def __init__(self) -> None:
        self._given: set[Address] = set()

    def update(self, wanted: types_pb2.Interface) -> types_pb2.Interface:
        """Replace the addresses that the host gave before.

        Returns:
            The interface as it is now.

        Raises:
            InvalidArgument: an address is invalid.
            FailedPrecondition: the kernel refuses one.
        """
        addresses = [parse_address(one, _INDEX) for one in wanted.IPAddresses]
        set_sysctls(wanted.sysctls)
        with Netlink() as netlink:
            present = {*rtnetlink.addresses(netlink)}
            try:
                for address in self._given.difference(addresses) & present:
                    rtnetlink.remove_address(netlink, address)
                self._given = {*addresses}
                for address in addresses:
                    if address not in present:
                        rtnetlink.add_address(netlink, address)
            except OSError as error:
                raise FailedPrecondition(f"interface {LOOPBACK}: {reason(error)}") from error
            return show_interface(netlink, _INDEX)
