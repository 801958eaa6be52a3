"""The kernel's socket lookup, steered: every TCP connection of a namespace, for as long as the link is open."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.linux import sklookup
from kata.linux.namespaces import CLONE_NEWNET, inside
from kata.linux.netlink import Netlink
from kata.linux.rtnetlink import change_link

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def namespace(network_namespace: str) -> Iterator[int]:
    """A network namespace of its own with loopback, open."""
    fd = os.open(network_namespace, os.O_RDONLY | os.O_CLOEXEC)
    with inside(fd, CLONE_NEWNET):
        netlink = Netlink()
    with netlink:
        change_link(netlink, 1, up=True)
    yield fd
    os.close(fd)


def listen(namespace: int) -> socket.socket:
    with inside(namespace, CLONE_NEWNET):
        listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", 0))
    listener.listen()
    listener.settimeout(10)
    return listener


@pytest.mark.parametrize(
    ("family", "address", "seen"),
    [(socket.AF_INET, "127.0.0.1", "::ffff:127.0.0.1"), (socket.AF_INET6, "::1", "::1")],
)
def test_every_port_is_taken_and_its_number_known(
    namespace: int, family: socket.AddressFamily, address: str, seen: str
) -> None:
    with listen(namespace) as listener:
        link = sklookup.steer(listener, namespace)
        with inside(namespace, CLONE_NEWNET):
            client = socket.socket(family)
        with client:
            client.connect((address, 80))
            taken, _ = listener.accept()
            with taken:
                assert taken.getsockname()[:2] == (seen, 80)
        os.close(link)
        with inside(namespace, CLONE_NEWNET):
            late = socket.socket(family)
        with late, pytest.raises(ConnectionRefusedError):
            late.connect((address, 80))


def test_datagrams_and_other_namespaces_are_left_alone(namespace: int) -> None:
    with listen(namespace) as listener:
        link = sklookup.steer(listener, namespace)
        try:
            with inside(namespace, CLONE_NEWNET):
                datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with datagrams:
                datagrams.settimeout(10)
                datagrams.connect(("127.0.0.1", 53))
                datagrams.send(b"x")
                with pytest.raises(ConnectionRefusedError):
                    datagrams.recv(1)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
        finally:
            os.close(link)


def test_what_is_no_namespace_is_refused(namespace: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = len(os.listdir("/proc/self/fd"))
    with listen(namespace) as listener, (tmp_path / "file").open() as file, pytest.raises(OSError, match="bpf"):
        sklookup.steer(listener, file.fileno())
    assert len(os.listdir("/proc/self/fd")) == before
