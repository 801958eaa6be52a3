"""Two sandboxes that are told the same network namespace, with a real namespace, veth pair and ledgers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import AsyncMock

import pytest

from kata.errors import FailedPrecondition
from kata.linux.rtnetlink import Link
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.ledger.journal import Ledger
from kata.runtime.network.endpoints import NO_LIMIT, endpoints
from kata.runtime.network.namespace import PodNetwork
from kata.runtime.network.sandbox_network import SandboxNetwork

pytestmark = pytest.mark.root


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@pytest.fixture
def namespace() -> Iterator[str]:
    """The name of a namespace with eth0, which has an address."""
    name = f"kata-test-{os.getpid()}"
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth9")
        ip("-n", name, "addr", "add", "192.0.2.2/24", "dev", "eth0")
        yield name
    finally:
        ip("netns", "delete", name)


def filters(namespace: str) -> str:
    command = ["tc", "-n", namespace, "filter", "show", "dev", "eth0", "ingress"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


async def no_card(link: Link) -> str:
    raise AssertionError(f"{link} is no card")


async def test_the_second_is_refused_and_does_the_first_no_harm(namespace: str, tmp_path: Path) -> None:
    path = f"/run/netns/{namespace}"
    pod = PodNetwork(path)
    (first,) = endpoints(pod.look(), path)
    (tap,) = pod.open_tap(first)
    try:
        pod.join(first)
        assert first.tap in filters(namespace)
        ledger = Ledger(str(tmp_path / "second"))
        second = SandboxNetwork(path, ledger, "tcfilter", 1, NO_LIMIT, no_card)
        # Refused before a VM would be asked for anything; a guest, at most for what it inherits from the host.
        agent = SimpleNamespace(update_interface=AsyncMock())
        with pytest.raises(FailedPrecondition, match=f"cannot connect eth0: tap device {first.tap} is in use"):
            await second.fit(cast(VirtualMachine, None), cast(AgentClient, agent), second.look())
        second.close()
        assert ledger.release() == []
        assert first.tap in filters(namespace)
    finally:
        os.close(tap)
        pod.detach(first.link.index)
        pod.close()
    assert filters(namespace) == ""
