"""Images pulled from a registry, of programs as Debian has them: a web server, Python, and iptables."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator

import pytest

from kata.protocols import cri_pb2 as pb
from tests.support.cni import Bridge
from tests.support.containerd import PrivateContainerd
from tests.support.cri import Cri, Pod
from tests.support.packages import iptables_archive, nginx_archive, python_archive
from tests.support.registry import Registry

SERVED = "served by nginx\n"


@pytest.fixture(scope="session")
def images(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Names of images that only the registry has."""
    directory = tmp_path_factory.mktemp("registry")
    with Registry(directory) as registry:
        names = {}
        for kind, make in (("nginx", nginx_archive), ("python", python_archive), ("iptables", iptables_archive)):
            names[kind] = f"{registry.address}/debian/{kind}:latest"
            containerd.import_image(make(directory / f"{kind}.tar", names[kind]))
            containerd.ctr("images", "push", "--plain-http", names[kind], timeout=60)
            containerd.ctr("images", "rm", "--sync", names[kind])
        yield names


@pytest.fixture
def web(cri: Cri, images: dict[str, str]) -> Iterator[Pod]:
    """A pod in which nginx serves."""
    cri.call("PullImage", image={"image": images["nginx"]})
    with cri.pod("web") as pod:
        server = pod.run(image=images["nginx"])
        server.sh("until wget -q -O - http://127.0.0.1/; do sleep 0.2; done")
        yield pod


def test_nginx_is_reached_from_everywhere(cri: Cri, web: Pod, bridge: Bridge) -> None:
    """From the host and another pod, by IPv4 and IPv6, and by port-forward."""
    four, six = web.addresses
    for url in (f"http://{four}/", f"http://[{six}]/"):
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.read().decode() == SERVED
    with cri.pod("visitor") as visitor:
        said = visitor.output("sh", "-c", f"wget -q -O - http://{four}/ && wget -q -O - http://[{six}]/")
        assert said == 2 * SERVED
    with web.forward(80) as connection:
        connection.send(b"GET / HTTP/1.0\r\n\r\n")
        assert SERVED.encode() in connection.receive(200)


def test_python_runs(cri: Cri, images: dict[str, str]) -> None:
    cri.call("PullImage", image={"image": images["python"]})
    script = "import json, socket, sys; print(json.dumps([sys.version_info[0], socket.gethostname()]))"
    with cri.pod("snake") as pod:
        assert pod.output("python3", "-c", script, image=images["python"]) == '[3, "snake"]\n'


FILTER = """
for version in '' 6; do
    ip${version}tables -A INPUT -p tcp --dport 8081 -j REJECT --reject-with tcp-reset && ip${version}tables -S INPUT
done"""
TRY = "for address in 127.0.0.1 [::1]; do wget -q -O - http://$address:%d/passwd | head -n 1; done"


def test_iptables_and_ip6tables(cri: Cri, images: dict[str, str]) -> None:
    """A privileged container filters what the pod receives, of both protocols; it counts for all its containers."""
    cri.call("PullImage", image={"image": images["iptables"]})
    linux = pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(privileged=True))
    with cri.pod("filter", linux=linux) as pod:
        for port in (8080, 8081):
            server = pod.run("httpd", "-f", "-p", str(port), "-h", "/etc")
            server.sh(f"until wget -q -O - http://[::1]:{port}/passwd; do sleep 0.2; done")
        privileged = pb.LinuxContainerSecurityContext(privileged=True)
        said = pod.output("sh", "-c", FILTER, image=images["iptables"], security=privileged)
        assert said.count("--dport 8081 -j REJECT --reject-with tcp-reset") == 2
        client = pod.run()
        assert client.sh(TRY % 8080).count("root:x:0:0") == 2
        assert client.sh(TRY % 8081) == ""


def test_an_image_that_is_not_there(cri: Cri) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        name = f"127.0.0.1:{nobody.getsockname()[1]}/none:latest"
        with pytest.raises(Exception, match="connection refused"):
            cri.call("PullImage", image={"image": name})
