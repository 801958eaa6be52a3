"""Pods on the network that containerd had a CNI plugin make."""

from __future__ import annotations

import urllib.request

from kata.testing.cni import Bridge
from kata.testing.cri import Cri, Pod


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
        script = f"ping -c 1 -W 5 {four} && ping -c 1 -W 5 {six} && wget -q -O - http://{four}/passwd"
        said = client.output("sh", "-c", f"{script} && wget -q -O - http://[{six}]/passwd")
        assert said.count("root:x:0:0") == 2
        with urllib.request.urlopen(f"http://[{six}]/passwd", timeout=20) as answer:
            assert answer.read().startswith(b"root:x:0:0")


def test_the_default_route_and_loopback(pod: Pod, bridge: Bridge) -> None:
    said = pod.output("sh", "-c", "ip route; ip -6 route; ping -c 1 -W 5 127.0.0.1")
    assert f"default via {bridge.gateway} dev eth0" in said
    assert f"default via {bridge.gateway6} dev eth0" in said
    assert "1 packets received" in said
