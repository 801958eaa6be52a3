"""Docker: it sets up a container's network by the process id that it is told, before the start and while it runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.errors import Unavailable
from tests.support import appending, hostnetwork
from tests.support.containerd import PrivateContainerd
from tests.support.docker import NAMESPACE, PrivateDocker, address_of, import_image, unpack_docker
from tests.support.images import busybox_rootfs
from tests.support.packages import NEXT_RELEASE
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.containerd,
]

IMAGE = "busybox:test"
KATA = str(Path(sys.executable).with_name("kata"))


@pytest.fixture(scope="module", params=["", NEXT_RELEASE], ids=["docker-26", "docker-28"])
def docker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateDocker]:
    directory = tmp_path_factory.mktemp("docker")
    rootfs, programs = directory / "rootfs", directory / "programs"
    rootfs.mkdir()
    programs.mkdir()
    busybox_rootfs(rootfs)
    try:
        unpack_docker(programs, request.param)
    except Unavailable as error:
        pytest.skip(f"needs Docker from a Debian mirror: {error}")
    with (
        hostnetwork.alone(),
        PrivateContainerd(namespace=NAMESPACE) as containerd,
        PrivateDocker(programs, containerd, directory) as docker,
    ):
        import_image(docker, rootfs, IMAGE)
        yield docker


@pytest.fixture
def container(docker: PrivateDocker) -> Iterator[str]:
    """One that serves its /etc."""
    before = hostnetwork.configuration()
    name = docker.run("--publish", "8080:80", IMAGE, "httpd", "-f", "-h", "/etc")
    yield name
    docker.docker("rm", "--force", name)
    assert hostnetwork.configuration() == before, "nothing of it was in the host's network"


def test_bridge_published_port_and_networks(docker: PrivateDocker, container: str) -> None:
    address = address_of(docker, container, "bridge")
    said = docker.docker("exec", container, "sh", "-c", "ip address show eth0; ip route; echo served >/etc/page").stdout
    assert f"{address}/16" in said
    assert "default via" in said
    for where in (address, "127.0.0.1:8080"):
        fetch = f"import urllib.request as r; print(r.urlopen('http://{where}/page', timeout=20).read())"
        assert docker.inside(sys.executable, "-c", fetch) == "b'served\\n'\n"
    # As this project's own commands see it: by the id that Docker shows.
    first_digits = docker.docker("inspect", "--format", "{{.Id}}", container).stdout[:12]
    listed = docker.inside(KATA, "list", "--format", "{{.ID}} {{.Engine}} {{.Namespace}} {{.State}} {{.Containers}}")
    assert f"{first_digits} docker {NAMESPACE} running 1/1\n" in listed
    assert docker.inside(KATA, "exec", first_digits, "cat", "/etc/page") == "served\n"
    docker.docker("network", "create", "other")
    try:
        docker.docker("network", "connect", "other", container)
        second = address_of(docker, container, "other")
        show = ("exec", container, "ip", "address", "show")
        eventually(lambda: docker.docker(*show).stdout, "the second network", lambda said: f"{second}/" in said)
        docker.docker("network", "disconnect", "other", container)
        eventually(lambda: docker.docker(*show).stdout, "the second is gone", lambda said: second not in said)
    finally:
        docker.docker("network", "rm", "other")


def test_two_containers_on_a_user_network(docker: PrivateDocker) -> None:
    docker.docker("network", "create", "user")
    name = docker.run("--network", "user", IMAGE, "sleep", "600")
    try:
        address = address_of(docker, name, "user")
        command = ("run", "--rm", "--network", "user", "--runtime", "io.containerd.kata.v2", IMAGE)
        assert "1 packets received" in docker.docker(*command, "ping", "-c", "1", "-W", "5", address).stdout
        docker.docker("stop", "--time", "1", name)
    finally:
        docker.docker("rm", "--force", name)
        docker.docker("network", "rm", "user")


@pytest.mark.long
def test_nothing_that_is_appended_is_lost(docker: PrivateDocker) -> None:
    """Docker's root file system is a directory for the shim, over 9p."""
    command = ("run", "--rm", "--runtime", "io.containerd.kata.v2", IMAGE, "sh", "-c", appending.script("/srv"))
    assert appending.lost(docker.docker(*command).stdout) == 0


def test_what_fails_before_its_start_leaves_nothing(docker: PrivateDocker) -> None:
    done = docker.docker("run", "--rm", "--runtime", "io.containerd.kata.v2", IMAGE, "/no/such", check=False)
    assert done.returncode != 0
    assert docker.docker("ps", "--all", "--quiet").stdout == ""
    assert "veth" not in subprocess.run(["ip", "link"], check=True, capture_output=True, text=True).stdout
