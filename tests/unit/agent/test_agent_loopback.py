"""The loopback interface and the sysctls in a network namespace: what the host says, beside what others have made."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from kata.agent.loopback import Loopback
from kata.agent.network import set_sysctls
from kata.errors import InvalidArgument
from kata.linux import sysctl
from kata.linux.namespaces import inside_new
from kata.protocols import types_pb2

pytestmark = [pytest.mark.root, pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2")]


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(autouse=True)
def guest() -> Iterator[None]:
    with inside_new("net"):
        ip("link", "set", "lo", "up")
        yield


def addresses() -> list[tuple[str, str]]:
    [shown] = json.loads(ip("-j", "address", "show", "lo"))
    return [(one["local"], one["scope"]) for one in shown["addr_info"]]


def interface(*which: tuple[str, int], sysctls: dict[str, str] | None = None) -> types_pb2.Interface:
    return types_pb2.Interface(
        name="lo",
        IPAddresses=[
            types_pb2.IPAddress(
                family=types_pb2.v6 if ":" in address else types_pb2.v4,
                address=address,
                mask="128" if ":" in address else "32",
                scope=scope,
            )
            for address, scope in which
        ],
        sysctls=sysctls,
    )


OWN = [("127.0.0.1", "host"), ("::1", "host")]


def test_it_keeps_its_own_addresses_and_a_containers() -> None:
    loopback = Loopback()
    answer = loopback.update(interface(("10.9.9.9", 0), ("127.0.0.2", 254), ("fd09::9", 0)))
    given = [("10.9.9.9", "global"), ("127.0.0.2", "host"), ("fd09::9", "global")]
    assert sorted(addresses()) == sorted([*OWN, *given])
    assert "10.9.9.9" in [one.address for one in answer.IPAddresses]
    ip("address", "add", "10.7.7.7/32", "dev", "lo")
    loopback.update(interface(("10.9.9.9", 0), ("10.7.7.7", 0)))
    assert sorted(addresses()) == sorted([*OWN, ("10.9.9.9", "global"), ("10.7.7.7", "global")])
    loopback.update(interface())
    assert sorted(addresses()) == sorted(OWN)


def test_sysctls_in_an_order_in_which_they_stay() -> None:
    """ip_forward resets those of all interfaces."""
    wanted = {"net/ipv4/conf/lo/forwarding": "0", "net/ipv4/ip_forward": "1", "net/core/somaxconn": "77"}
    Loopback().update(interface(sysctls=wanted))
    found = sysctl.read_all()
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("net/core/absent", "1", "No such file"),
        ("net/core/somaxconn", "many", "Invalid argument"),
        ("kernel/panic", "1", "invalid name"),
    ],
)
def test_what_this_kernel_does_not_take_is_logged(
    name: str, value: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        set_sysctls({name: value})
    assert f"cannot set {name} to {value!r}" in caplog.text
    assert said in caplog.text


def test_an_invalid_address() -> None:
    with pytest.raises(InvalidArgument, match="invalid IPv4 address"):
        Loopback().update(interface(("10.9.9", 0)))
