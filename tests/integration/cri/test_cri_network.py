"""Pods on the network that containerd had a CNI plugin make."""

from __future__ import annotations

import hashlib
import urllib.request

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.cni import Bridge
from tests.support.cri import Cri, Pod


def test_a_pod_has_the_addresses_that_containerd_tells(pod: Pod) -> None:
    said = pod.output("ip", "-o", "addr", "show", "eth0")
    assert all(f" {address}/" in said for address in pod.addresses)


def test_containers_of_a_pod_share_its_network(pod: Pod) -> None:
    server = pod.run("httpd", "-f", "-p", "8080", "-h", "/etc")
    client = pod.run()
    assert client.sh("wget -q -O - http://127.0.0.1:8080/passwd").startswith("root:x:0:0")
    server.remove()
    client.remove()


def test_pods_reach_each_other_and_the_host_reaches_them(cri: Cri, bridge: Bridge) -> None:
    with cri.pod("server") as server, cri.pod("client") as client:
        server.run("httpd", "-f", "-p", "80", "-h", "/etc")
        four, six = server.addresses
        script = f"ping -c 1 -W 60 {four} && ping -c 1 -W 60 {six} && wget -q -O - http://{four}/passwd"
        said = client.output("sh", "-c", f"{script} && wget -q -O - http://[{six}]/passwd")
        assert said.count("root:x:0:0") == 2
        with urllib.request.urlopen(f"http://[{six}]/passwd", timeout=20) as answer:
            assert answer.read().startswith(b"root:x:0:0")


SUM = """
mkdir -p /srv/cgi-bin && cd /srv/cgi-bin && printf '#!/bin/sh\\necho\\necho\\nmd5sum\\n' >sum && chmod +x sum
exec httpd -f -h /srv -p"""


@pytest.mark.parametrize("address", ["127.0.0.1:81", "82"], ids=["loopback", "all"])
def test_a_port_is_forwarded(pod: Pod, address: str) -> None:
    """A program that listens on localhost only is reached, and what a client sends arrives whole."""
    server = pod.run("sh", "-c", f"{SUM} {address}")
    port = int(address.rpartition(":")[2])
    content = bytes(range(256)) * 8192
    head = f"POST /cgi-bin/sum HTTP/1.0\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    try:
        server.sh(f"until wget -q -O - http://127.0.0.1:{port}/cgi-bin/sum; do sleep 0.1; done")
        with pod.forward(port) as connection:
            connection.send(head)
            for begin in range(0, len(content), 1 << 16):
                connection.send(content[begin : begin + (1 << 16)])
            said = b""
            while b"  -" not in said:
                said += connection.receive(1)
        assert hashlib.md5(content).hexdigest().encode() in said
    finally:
        server.remove()


def test_a_port_where_nobody_listens_is_an_error(pod: Pod) -> None:
    with pod.forward(9) as connection, pytest.raises((ConnectionError, ConnectionClosed)):
        connection.receive(1)


def test_the_default_route_and_loopback(pod: Pod, bridge: Bridge) -> None:
    said = pod.output("sh", "-c", "ip route; ip -6 route; ping -c 1 -W 60 127.0.0.1")
    assert f"default via {bridge.gateway} dev eth0" in said
    assert f"default via {bridge.gateway6} dev eth0" in said
    assert "1 packets received" in said
