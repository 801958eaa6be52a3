"""Pods whose network several plugins make, one after the other: ports of the host, and the firewall's rules."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest

from kata.protocols import cri_pb2 as pb
from kata.testing.cni import Bridge
from kata.testing.containerd import PrivateContainerd
from kata.testing.cri import Cri, pod_containerd
from kata.testing.images import BUSYBOX

pytestmark = pytest.mark.skipif(shutil.which("iptables") is None, reason="needs iptables")

CHAINED = (
    {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    {"type": "firewall", "backend": "iptables"},
    {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_notify": "1"}},
)


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    with Bridge(f"kh{os.getpid()}", tmp_path_factory.mktemp("cni")) as bridge:
        yield bridge


@pytest.fixture(scope="module")
def containerd(bridge: Bridge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateContainerd]:
    scratch = tmp_path_factory.mktemp("cri")
    with pod_containerd(bridge, scratch, debug=True) as containerd:
        bridge.write(scratch / "net.d", *CHAINED)
        yield containerd


@pytest.fixture(scope="module", params=["runc", "kata"])
def cri(
    request: pytest.FixtureRequest, containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cri]:
    with Cri(containerd.address, request.param, BUSYBOX, tmp_path_factory.mktemp("logs")) as cri:
        yield cri


def rules(text: str) -> list[str]:
    """The host's rules with a text in them."""
    said = subprocess.run(["iptables-save"], check=True, capture_output=True, text=True, timeout=20).stdout
    return [line for line in said.splitlines() if text in line]


def test_a_port_of_the_host_is_the_pods(cri: Cri, bridge: Bridge) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mapping = pb.PortMapping(protocol=pb.TCP, container_port=8080, host_port=port)
    with cri.pod("ports", port_mappings=[mapping]) as pod:
        server = pod.run("httpd", "-f", "-p", "8080", "-h", "/etc")
        server.sh("until wget -q -O - http://127.0.0.1:8080/passwd; do sleep 0.1; done")
        address = pod.addresses[0]
        for host in ("127.0.0.1", bridge.gateway):
            with urllib.request.urlopen(f"http://{host}:{port}/passwd", timeout=20) as answer:
                assert answer.read().startswith(b"root:x:0:0"), host
        assert [line for line in rules(address) if "CNI-FORWARD" in line], "the firewall lets the pod through"
    assert rules(f"--dport {port} ") == []
    assert rules(address) == []
