"""A pod's network namespace: looked at, its interfaces joined to tap devices, and left as it was found.

Only file descriptors and netlink sockets are made inside; they keep belonging to the namespace, so nobody has to stay
there. The addresses stay on the interface, where nothing can arrive any more, and it is joined by one of Kata's models:

    tcfilter    what arrives at the interface goes out at a tap device, and the other way round, by one traffic control
                filter each; the tap device vanishes with the machine
    macvtap     a macvtap interface takes it over as a whole, and has to be removed afterwards
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound
from kata.linux import rtnetlink
from kata.linux.namespaces import CLONE_NEWNET, inside
from kata.linux.netlink import Netlink
from kata.linux.sklookup import steer
from kata.linux.tap import open_macvtap, open_tap
from kata.runtime.network.endpoints import NO_LIMIT, Endpoint, Rates, Snapshot
from kata.runtime.network.release import remove_filter

_OTHER = "another sandbox runs in this namespace, or still ends there"
#: Numbers of interfaces that nobody else uses: the kernel counts from 1 in each namespace. A device node is called by
#: the number, and is one of the whole host's.
_NUMBERS = range(1 << 16, 1 << 30)


def number_of_macvtap() -> int:
    """A number for a macvtap interface."""
    # Not `random`, which would load OpenSSL into every shim with a network.
    return _NUMBERS[int.from_bytes(os.urandom(4), "little") % len(_NUMBERS)]


class PodNetwork:
    """The network namespace at a path.

    Raises:
        NotFound: there is none.
        InvalidArgument: it is this process's own, which is the host's, or no network namespace.
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
                f"network namespace {path} is the host's, which a virtual machine cannot have",
                hint="run it without the host network",
            )

    def close(self) -> None:
        """Let go of it. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Have the calling thread in it for a moment. Raises OSError."""
        with inside(self._fd, CLONE_NEWNET):
            yield

    def changes(self) -> Netlink:
        """A socket with a message for each change of interfaces, addresses and routes. Raises InvalidArgument."""
        return self._netlink(rtnetlink.GROUPS_ALL)

    def _netlink(self, groups: int = 0) -> Netlink:
        try:
            with inside(self._fd, CLONE_NEWNET):
                return Netlink(groups)
        except OSError as error:
            raise InvalidArgument(f"network namespace {self.path} cannot be entered: {error.strerror}") from error

    def look(self) -> Snapshot:
        """What is in it now.

        Raises:
            NotFound, InvalidArgument: it is gone, or none.
            FailedPrecondition: the kernel does not answer.
        """
        with self._netlink() as netlink:
            try:
                return Snapshot(
                    rtnetlink.links(netlink),
                    rtnetlink.addresses(netlink),
                    rtnetlink.routes(netlink),
                    rtnetlink.neighbours(netlink),
                )
            except OSError as error:
                raise FailedPrecondition(f"network namespace {self.path}: {_reason(error)}") from error

    def indexes(self) -> set[int]:
        """The numbers of all interfaces in it. Raises as `look`."""
        return {link.index for link in self.look().links}

    def catch(self) -> tuple[socket.socket, int]:
        """A listening socket that gets every TCP connection made inside, whatever its address and port.

        Returns:
            The socket, and a descriptor: once that is closed the socket gets nothing more.

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
        """Make the tap device of an interface, or connect to one. Its name keeps a second sandbox from the interface.

        Args:
            queues: of a device that is made, or macvtap; a tap device that is there has one.

        Returns:
            The tap device's descriptors. The device vanishes when the last copy of them is closed.

        Raises:
            FailedPrecondition: the namespace is gone, or the interface has a machine already.
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
        """Make the macvtap interface of number `index` that takes an interface over. Its name does as in `open_tap`.

        Raises:
            FailedPrecondition: the namespace is gone, or the interface has a machine already.
        """
        try:
            with self._netlink() as netlink:
                rtnetlink.add_macvtap(netlink, endpoint.tap, index, endpoint.link.index)
        except OSError as error:
            what = f"network namespace {self.path}: cannot connect {endpoint.link.name} by macvtap"
            # EINVAL: one that another macvtap or macvlan interface is on cannot be taken over as a whole.
            if error.errno in (errno.EEXIST, errno.EBUSY, errno.EINVAL):
                raise FailedPrecondition(f"{what}: it is in use", hint=_OTHER) from error
            raise FailedPrecondition(f"{what}: {_reason(error)}") from error

    def open_macvtap(self, endpoint: Endpoint, index: int, queues: int) -> tuple[int, ...]:
        """Connect to the interface that `make_macvtap` has made, and let packets through.

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
        """Join an interface to its tap device, which is open; what was done is undone if that fails.

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
        """Take the filter and the limit from an interface. What is gone already is fine."""
        remove_filter(self.path, self.inode, index)


def _hold(path: str) -> int:
    """The namespace at a path, open: held as a container without a machine holds it by its processes.

    Not by the file at the path itself, which would keep that from being unmounted.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"network namespace {path}: {error.strerror}") from error
    try:
        with inside(fd, CLONE_NEWNET):
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidArgument(f"network namespace {path} cannot be entered: {error.strerror}") from error
    finally:
        os.close(fd)


def _listen() -> socket.socket:
    """A socket that listens for IPv4 and IPv6 alike, or for IPv4 where there is no other."""
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
    # What the guest gets is sent by the tap device, what it sends by the interface.
    for index, rate in ((tap.index, rates.receive), (link.index, rates.send)):
        if rate:
            rtnetlink.limit_rate(netlink, index, rate)
    rtnetlink.change_link(netlink, tap.index, up=True)


def _reason(error: OSError) -> str:
    subject = f"{error.filename}: " if isinstance(error.filename, str) else ""
    return f"{subject}{error.strerror or error}"
