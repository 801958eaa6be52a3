"""A pod's network namespace: its interfaces, and connecting them to tap devices.

Only descriptors and netlink sockets are opened inside. They keep belonging to the namespace, so that no thread has to
stay there. An interface keeps its addresses, but gets no packets any more. It is connected by one of Kata's models:

    tcfilter    traffic control redirects what arrives at the interface to a tap device, and vice versa; the tap device
                vanishes with the VM
    macvtap     a macvtap interface in pass-through mode on the interface, which has to be removed afterwards

References: network_namespaces(7); the kernel's Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound
from kata.linux import routing, rtnetlink, sysctl
from kata.linux.namespaces import CLONE_NEWNET, inside, inside_new
from kata.linux.netlink import GROUPS_ALL, Netlink
from kata.linux.sklookup import steer
from kata.linux.tap import open_macvtap, open_tap
from kata.runtime.network.endpoints import NO_LIMIT, Endpoint, Rates, Snapshot
from kata.runtime.network.release import remove_filter
from kata.runtime.network.sysctls import changed

_OTHER = "another sandbox runs in this namespace, or still ends there"
#: Interface indexes that nobody else uses: the kernel counts from 1 in each namespace. The index names the device node
#: of a macvtap interface, which has to be unique on the host.
_NUMBERS = range(1 << 16, 1 << 30)


def random_index() -> int:
    """An index for a macvtap interface."""
    # Not `random`, which would load OpenSSL into every shim with a network.
    return _NUMBERS[int.from_bytes(os.urandom(4), "little") % len(_NUMBERS)]


class PodNetwork:
    """The network namespace at a path, held open.

    Raises:
        NotFound: the path does not exist.
        InvalidArgument: it is the host's (this process's own), or not a network namespace.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = _hold(path)
        found = os.fstat(self._fd)
        self.inode = found.st_ino
        own = os.stat("/proc/thread-self/ns/net")
        if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino):
            self.close()
            raise InvalidArgument(
                f"network namespace {path} is the host's, which a VM cannot have",
                hint="run it without the host network",
            )

    def close(self) -> None:
        """Close it. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Run the body with the calling thread in the namespace.

        Raises:
            OSError: the kernel refuses.
        """
        with inside(self._fd, CLONE_NEWNET):
            yield

    def changes(self) -> Netlink:
        """A socket that gets a message for each change of interfaces, addresses and routes.

        Raises:
            InvalidArgument: the namespace cannot be entered.
        """
        return self._netlink(GROUPS_ALL)

    def _netlink(self, groups: int = 0) -> Netlink:
        try:
            with inside(self._fd, CLONE_NEWNET):
                return Netlink(groups)
        except OSError as error:
            raise InvalidArgument(f"cannot enter network namespace {self.path}: {error.strerror}") from error

    def look(self) -> Snapshot:
        """What is in it now.

        Raises:
            InvalidArgument: the namespace cannot be entered.
            FailedPrecondition: the kernel refuses.
        """
        with self._netlink() as netlink:
            try:
                return Snapshot(
                    rtnetlink.links(netlink),
                    rtnetlink.addresses(netlink),
                    routing.routes(netlink),
                    rtnetlink.neighbours(netlink),
                    routing.rules(netlink),
                )
            except OSError as error:
                raise FailedPrecondition(f"network namespace {self.path}: {_reason(error)}") from error

    def sysctls(self) -> dict[str, str]:
        """Those that somebody has set in it. It takes some milliseconds.

        Raises:
            FailedPrecondition: the kernel refuses to enter the namespace, or to make one to compare it with.
        """
        try:
            with inside(self._fd, CLONE_NEWNET):
                now = sysctl.read_all()
            with inside_new("net"):
                new = sysctl.read_all()
        except OSError as error:
            raise FailedPrecondition(f"network namespace {self.path}: {_reason(error)}") from error
        return changed(now, new)

    def catch(self) -> tuple[socket.socket, int]:
        """A listening socket that gets every TCP connection that is made inside, whatever its address and port.

        Returns:
            The socket, and a descriptor: when it is closed, the socket gets no more connections.

        Raises:
            FailedPrecondition: the namespace is gone, or the kernel cannot do that.
        """
        listener: socket.socket | None = None
        try:
            with inside(self._fd, CLONE_NEWNET):
                listener = _listen()
            return listener, steer(listener, self._fd)
        except OSError as error:
            if listener is not None:
                listener.close()
            reason = _reason(error)
            raise FailedPrecondition(f"network namespace {self.path}: cannot catch connections: {reason}") from error

    def open_tap(self, endpoint: Endpoint, queues: int = 1) -> tuple[int, ...]:
        """Create the tap device of an interface, or open it. Its name keeps a second sandbox from the interface.

        Args:
            endpoint: the interface.
            queues: pairs of queues of a new device or a macvtap; an existing tap device has one.

        Returns:
            One descriptor for each pair. A new device vanishes when the last copy of them is closed.

        Raises:
            FailedPrecondition: the namespace is gone, or the interface is in use by another VM.
        """
        what = f"network namespace {self.path}: cannot connect {endpoint.link.name}: tap device {endpoint.tap}"
        try:
            with inside(self._fd, CLONE_NEWNET):
                if endpoint.is_macvtap:
                    return open_macvtap(endpoint.link.index, endpoint.tap, queues)
                return open_tap(endpoint.tap, 1 if endpoint.is_tap else queues)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise FailedPrecondition(f"{what} is in use", hint=_OTHER) from error
            raise FailedPrecondition(f"{what}: {_reason(error)}") from error
        except NotFound as error:
            raise FailedPrecondition(f"{what}: {error.message}") from error

    def make_macvtap(self, endpoint: Endpoint, index: int) -> None:
        """Create the macvtap interface `index` on an interface. Its name works as in `open_tap`.

        Raises:
            FailedPrecondition: the namespace is gone, or the interface is in use by another VM.
        """
        try:
            with self._netlink() as netlink:
                rtnetlink.add_macvtap(netlink, endpoint.tap, index, endpoint.link.index)
        except OSError as error:
            what = f"network namespace {self.path}: cannot connect {endpoint.link.name} by macvtap"
            # EINVAL: an interface with another macvtap or macvlan interface on it has no pass-through mode.
            if error.errno in (errno.EEXIST, errno.EBUSY, errno.EINVAL):
                raise FailedPrecondition(f"{what}: it is in use", hint=_OTHER) from error
            raise FailedPrecondition(f"{what}: {_reason(error)}") from error

    def open_macvtap(self, endpoint: Endpoint, index: int, queues: int) -> tuple[int, ...]:
        """Open the interface that `make_macvtap` has created, and bring it up.

        Args:
            endpoint: the interface beneath.
            index: of the macvtap interface.
            queues: pairs of queues.

        Returns:
            One descriptor for each pair.

        Raises:
            FailedPrecondition: it has no device node, or the kernel refuses.
        """
        what = f"network namespace {self.path}: cannot connect {endpoint.link.name}: {endpoint.tap}"
        try:
            with self._netlink() as netlink:
                rtnetlink.change_link(netlink, endpoint.link.index, up=True)
                rtnetlink.change_link(netlink, index, up=True)
            with inside(self._fd, CLONE_NEWNET):
                return open_macvtap(index, endpoint.tap, queues)
        except OSError as error:
            raise FailedPrecondition(f"{what}: {_reason(error)}") from error

    def join(self, endpoint: Endpoint, rates: Rates = NO_LIMIT) -> None:
        """Redirect between an interface and its tap device, which is open. Undone if that fails.

        Args:
            endpoint: the interface.
            rates: its limits.

        Raises:
            FailedPrecondition: the interface or the namespace is gone, or the kernel refuses.
        """
        try:
            with self._netlink() as netlink:
                _join(netlink, endpoint, rates)
        except (OSError, KataError) as error:
            self.detach(endpoint.link.index)
            reason = _reason(error) if isinstance(error, OSError) else error.message
            raise FailedPrecondition(
                f"network namespace {self.path}: cannot connect {endpoint.link.name}: {reason}"
            ) from error

    def detach(self, index: int) -> None:
        """Remove filter and rate limit of an interface, if they are there.

        Raises:
            OSError: the kernel refuses.
        """
        remove_filter(self.path, self.inode, index)


def _hold(path: str) -> int:
    """Open the namespace at a path.

    Not the file at the path, which could not be unmounted then.

    Raises:
        NotFound: there is no such file, or it is not accessible.
        InvalidArgument: it is not a network namespace, or the kernel refuses to enter it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"network namespace {path}: {error.strerror}") from error
    try:
        with inside(fd, CLONE_NEWNET):
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument(f"cannot enter network namespace {path}: {error.strerror}") from error
    finally:
        os.close(fd)


def _listen() -> socket.socket:
    """A socket that listens for IPv4 and IPv6, or only for IPv4 without IPv6."""
    try:
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    except OSError:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("", 0))
        listener.listen()
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _join(netlink: Netlink, endpoint: Endpoint, rates: Rates) -> None:
    link = endpoint.link
    tap = next((one for one in rtnetlink.links(netlink) if one.name == endpoint.tap), None)
    if tap is None:
        raise FailedPrecondition(f"tap device {endpoint.tap} has vanished")
    rtnetlink.change_link(netlink, tap.index, mtu=link.mtu)
    rtnetlink.change_link(netlink, link.index, up=True)
    rtnetlink.redirect(netlink, tap.index, link.index)
    rtnetlink.redirect(netlink, link.index, tap.index)
    # What the guest receives is sent by the tap device, what it sends by the interface.
    for index, rate in ((tap.index, rates.receive), (link.index, rates.send)):
        if rate:
            rtnetlink.limit_rate(netlink, index, rate)
    rtnetlink.change_link(netlink, tap.index, up=True)


def _reason(error: OSError) -> str:
    subject = f"{error.filename}: " if isinstance(error.filename, str) else ""
    return f"{subject}{error.strerror or error}"
