"""Pods whose network several plugins make, one after the other: what all of them do, and what stays when one fails.

When CNI fails, half-way or because all addresses are used, the pod is not made, nothing stays, and the next one is.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import grpc
import pytest

from kata.protocols import cri_pb2 as pb
from tests.support.cni import PLUGINS, Bridge
from tests.support.containerd import PrivateContainerd
from tests.support.cri import Cri, pod_containerd
from tests.support.images import BUSYBOX

pytestmark = pytest.mark.skipif(shutil.which("iptables") is None, reason="needs iptables")

CHAINED = (
    {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    {"type": "firewall", "backend": "iptables"},
    {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_notify": "1"}},
    {"type": "failing"},
)
#: The last plugin of the chain: fails while a file is there, and passes on what the others gave otherwise.
FAILING = """\
#!/usr/bin/python3
import json, os, sys
given = json.load(sys.stdin)
if os.environ["CNI_COMMAND"] == "ADD":
    if os.path.exists({flag!r}):
        print(json.dumps({{"cniVersion": "1.0.0", "code": 100, "msg": "the address is used already"}}))
        sys.exit(1)
    print(json.dumps(given["prevResult"]))
"""


@pytest.fixture(scope="module")
def flag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flag") / "fail"


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    with Bridge(f"kf{os.getpid()}", tmp_path_factory.mktemp("cni")) as bridge:
        yield bridge


@pytest.fixture(scope="module")
def containerd(bridge: Bridge, flag: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateContainerd]:
    plugins = tmp_path_factory.mktemp("plugins")
    for plugin in PLUGINS.iterdir():
        (plugins / plugin.name).symlink_to(plugin)
    failing = plugins / "failing"
    failing.write_text(FAILING.format(flag=str(flag)))
    failing.chmod(0o755)
    scratch = tmp_path_factory.mktemp("cri")
    with pod_containerd(bridge, scratch, plugins=plugins, debug=True) as containerd:
        bridge.write(scratch / "net.d", *CHAINED)
        yield containerd


@pytest.fixture(scope="module", params=["runc", "kata"])
def cri(
    request: pytest.FixtureRequest, containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cri]:
    with Cri(containerd.address, request.param, BUSYBOX, tmp_path_factory.mktemp("logs")) as cri:
        yield cri


@contextmanager
def flagged(flag: Path) -> Iterator[None]:
    flag.touch()
    try:
        yield
    finally:
        flag.unlink()


@contextmanager
def all_taken(bridge: Bridge) -> Iterator[None]:
    """Somebody else has every address that is left."""
    records = [bridge.taken / f"{bridge.subnet}.{number}" for number in range(2, 255)]
    others = [record for record in records if not record.exists()]
    for record in others:
        record.write_text("somebody\r\neth0")
    try:
        yield
    finally:
        for record in others:
            record.unlink()


def fails_and_works_again(cri: Cri, bridge: Bridge, while_: AbstractContextManager[None], message: str) -> None:
    # The bridge has its address, and the node its first pod, before.
    with cri.pod("first"):
        ports = set(Path(f"/sys/class/net/{bridge.name}/brif").iterdir())
        with while_, pytest.raises(grpc.RpcError, match=message), cri.pod("fails"):
            pass
        assert set(Path(f"/sys/class/net/{bridge.name}/brif").iterdir()) == ports
        assert [pod.metadata.name for pod in cri.call("ListPodSandbox").items] == ["first"]
        with cri.pod("fails") as pod:
            assert "eth0" in pod.output("ip", "addr")


def test_a_plugin_fails_after_another_has_made_the_interface(cri: Cri, bridge: Bridge, flag: Path) -> None:
    fails_and_works_again(cri, bridge, flagged(flag), "the address is used already")


def test_every_address_is_used_already(cri: Cri, bridge: Bridge) -> None:
    fails_and_works_again(cri, bridge, all_taken(bridge), "no IP addresses available")


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
