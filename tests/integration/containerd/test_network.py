"""Pods on a network that real CNI plugins made: containers in virtual machines are where the plugins put them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata.oci.default import default_spec
from kata.protocols.containerd import task_v2_pb2
from tests.support import oracle
from tests.support.cni import PLUGINS, Bridge, Macvlan, Pod
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX
from tests.support.rawshim import RawShim
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.containerd,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not (PLUGINS / "bridge").exists(), reason="needs containernetworking-plugins"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2"),
]

MTU = 1400


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    with Bridge(f"kt{os.getpid()}", tmp_path_factory.mktemp("cni"), mtu=MTU) as bridge:
        yield bridge


@pytest.fixture(scope="module")
def server(containerd: PrivateContainerd, bridge: Bridge) -> Iterator[Pod]:
    """A pod that serves its root directory over HTTP."""
    container = unique_id(TEST_PREFIX)
    with bridge.pod(container) as pod:
        start(containerd, pod, container, "httpd", "-f", "-p", "80", "-h", "/etc")
        try:
            yield pod
        finally:
            remove(containerd, container)


def start(containerd: PrivateContainerd, pod: Pod, container: str, *command: str) -> None:
    namespace = f"network:{pod.netns}"
    containerd.ctr("run", "-d", "--with-ns", namespace, "--runtime", RUNTIME, BUSYBOX, container, *command, timeout=60)


def remove(containerd: PrivateContainerd, container: str) -> None:
    containerd.ctr("task", "rm", "-f", container, check=False)
    containerd.ctr("container", "rm", container, check=False)


def run(containerd: PrivateContainerd, pod: Pod, script: str, runtime: str = RUNTIME) -> str:
    namespace = f"network:{pod.netns}"
    command = ("run", "--rm", "--with-ns", namespace, "--runtime", runtime, BUSYBOX, unique_id(TEST_PREFIX))
    return containerd.ctr(*command, "sh", "-c", script, timeout=60).stdout


def runcs(containerd: PrivateContainerd, pod: Pod, script: str) -> str:
    """What a script says in runc."""
    return oracle.answer(oracle.RUNC, lambda: run(containerd, pod, script, oracle.RUNC))


def interfaces(pod: Pod) -> list[str]:
    """Names of the interfaces, and the filters and limits on them."""
    inside = ["ip", "netns", "exec", pod.name]
    names = subprocess.run([*inside, "ls", "/sys/class/net"], check=True, capture_output=True, text=True).stdout
    qdiscs = subprocess.run([*inside, "tc", "qdisc", "show"], check=True, capture_output=True, text=True).stdout
    return [*names.split(), *(line for line in qdiscs.splitlines() if "ingress" in line or "tbf" in line)]


@contextmanager
def left_as_found(pod: Pod) -> Iterator[None]:
    before = interfaces(pod)
    yield
    eventually(lambda: interfaces(pod), "the namespace is as it was", lambda after: after == before)


def test_the_guest_has_what_the_plugin_gave(containerd: PrivateContainerd, bridge: Bridge) -> None:
    with bridge.pod(unique_id(TEST_PREFIX)) as pod, left_as_found(pod):
        said = run(containerd, pod, "ip addr show eth0; ip route; ip -6 route; cat /sys/class/net/eth0/mtu")
        hardware = subprocess.run(
            ["ip", "netns", "exec", pod.name, "cat", "/sys/class/net/eth0/address"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        assert hardware in said
        for address in pod.addresses:
            assert address in said
        assert f"default via {bridge.gateway} dev eth0" in said
        assert f"default via {bridge.gateway6} dev eth0" in said
        assert said.splitlines()[-1] == str(MTU)


def test_routes_and_rules_are_runcs(containerd: PrivateContainerd, bridge: Bridge) -> None:
    with bridge.pod(unique_id(TEST_PREFIX)) as pod, left_as_found(pod):
        gateway = bridge.gateway
        for line in (
            "route del default",
            f"route add default via {gateway} dev eth0 metric 100",
            f"route add default via {bridge.subnet}.254 dev eth0 metric 200",
            f"route add 10.5.0.0/16 via {gateway} dev eth0 table 101",
            "route add blackhole 10.6.0.0/16",
            "route add unreachable 10.7.0.0/16 table 101",
            f"route add 10.8.0.0/16 nexthop via {gateway} dev eth0 weight 2 nexthop via {bridge.subnet}.254 dev eth0",
            f"route replace {bridge.subnet}.0/24 dev eth0 scope link src {pod.addresses[0]} mtu 1300",
            "-6 route add blackhole fd08::/64",
            f"-6 route add fd09::/64 via {bridge.gateway6} dev eth0 table 101 metric 7",
            f"rule add from {pod.addresses[0]} lookup 101 pref 50",
            "rule add fwmark 0x10/0xff prohibit pref 51",
            "-6 rule add to fd09::/64 lookup 101 pref 52",
        ):
            subprocess.run(["ip", "-n", pod.name, *line.split()], check=True)
        script = "ip route; ip route show table 101; ip -6 route show table 101; ip -6 route show root fd08::/64"
        script += "; ip rule; ip -6 rule"
        wanted = runcs(containerd, pod, script)
        assert "metric 200" in wanted
        assert "fwmark 0x10/0xff" in wanted
        assert run(containerd, pod, script) == wanted


def test_loopback_addresses_and_sysctls_are_runcs(containerd: PrivateContainerd, bridge: Bridge) -> None:
    """As CNI's plugin "tuning" sets them, in the namespace and of an interface."""
    wanted = {
        "net/core/somaxconn": "77",
        "net/ipv4/ip_local_port_range": "2000 3000",
        "net/ipv4/conf/all/arp_ignore": "1",
        "net/ipv4/conf/eth0/arp_notify": "1",
        "net/ipv6/conf/eth0/accept_ra": "0",
        "net/ipv4/ip_forward": "1",
    }
    with bridge.pod(unique_id(TEST_PREFIX)) as pod, left_as_found(pod):
        inside = ["ip", "netns", "exec", pod.name]
        for name, value in wanted.items():
            subprocess.run([*inside, "sh", "-c", f"echo {value} >/proc/sys/{name}"], check=True)
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        for address in ("10.9.9.9/32", "127.0.0.2/8", "fd09::9/128"):
            subprocess.run([*inside, "ip", "address", "add", address, "dev", "lo"], check=True)
        files = " ".join(f"/proc/sys/{name}" for name in wanted)
        script = f"ip address show lo; grep . {files}; ping -c 1 -W 60 10.9.9.9 >/dev/null && echo reached"
        said = runcs(containerd, pod, script)
        assert "fd09::9/128" in said
        assert "arp_notify:1" in said
        assert "reached" in said
        # The agent's addresses are usable at once, which busybox shows as a flag.
        assert run(containerd, pod, script).replace(" flags 02", "") == said


def test_pods_reach_each_other_and_the_host(containerd: PrivateContainerd, bridge: Bridge, server: Pod) -> None:
    with bridge.pod(unique_id(TEST_PREFIX)) as pod:
        four, six = server.addresses
        said = run(
            containerd,
            pod,
            f"ping -c 1 -W 60 {four} && ping -c 1 -W 60 {six} && ping -c 1 -W 60 {bridge.gateway}"
            f" && wget -q -O - http://{four}/passwd && wget -q -O - http://[{six}]/passwd",
        )
        assert said.count("1 packets received") == 3
        assert said.count("root:x:0:0") == 2


def test_the_host_reaches_a_pod(server: Pod) -> None:
    for address in (server.addresses[0], f"[{server.addresses[1]}]"):
        with urllib.request.urlopen(f"http://{address}/passwd", timeout=20) as answer:
            assert answer.read().startswith(b"root:x:0:0")


def test_pods_on_macvlan_reach_each_other(containerd: PrivateContainerd, tmp_path: Path) -> None:
    container = unique_id(TEST_PREFIX)
    with (
        Macvlan(f"km{os.getpid()}", tmp_path) as network,
        network.pod(container) as server,
        network.pod(unique_id(TEST_PREFIX)) as client,
        left_as_found(server),
        left_as_found(client),
    ):
        start(containerd, server, container, "httpd", "-f", "-p", "80", "-h", "/etc")
        try:
            four, six = server.addresses
            said = run(
                containerd,
                client,
                f"ping -c 1 -W 60 {four} && ping -c 1 -W 60 {six} && wget -q -O - http://{four}/passwd",
            )
        finally:
            remove(containerd, container)
        assert said.count("1 packets received") == 2
        assert "root:x:0:0" in said


@pytest.mark.parametrize(("shim", "vm"), [(True, False), (False, True), (True, True)])
def test_a_kill_leaves_the_namespace_as_it_was(
    containerd: PrivateContainerd, bridge: Bridge, shim: bool, vm: bool
) -> None:
    container = unique_id(TEST_PREFIX)
    with bridge.pod(container) as pod, left_as_found(pod):
        start(containerd, pod, container, "sleep", "1000")
        assert any("ingress" in line for line in interfaces(pod))
        containerd.kill_sandbox(container, shim=shim, vm=vm)
        remove(containerd, container)


async def test_an_interface_that_appears_after_create(bridge: Bridge, configuration: Path) -> None:
    """Docker fills the namespace between create and start."""
    with bridge.pod(unique_id(TEST_PREFIX)) as pod, left_as_found(pod):
        inside = ["ip", "netns", "exec", pod.name, "ip"]
        address = f"{bridge.subnet}.99/24"
        for thing in ("addr", "-6 route"):
            subprocess.run([*inside, *thing.split(), "flush", "dev", "eth0"], check=True)
        async with RawShim(TEST_PREFIX, {"KATA_CONF_FILE": str(configuration)}) as raw:
            rootfs = str(raw.directory / "rootfs")
            spec = default_spec(("sh", "-c", "ip addr show eth0 > /out"), rootfs=rootfs, hostname="late")
            for namespace in spec["linux"]["namespaces"]:
                if namespace["type"] == "network":
                    namespace["path"] = str(pod.netns)
            container = raw.bundle(spec=spec)
            task = await raw.task(container)
            await task.call("Create", raw.create_request(container))
            subprocess.run([*inside, "addr", "add", address, "dev", "eth0"], check=True)
            await task.call("Start", task_v2_pb2.StartRequest(id=container))
            await task.call("Wait", task_v2_pb2.WaitRequest(id=container))
            assert address in (raw.directory / "rootfs/out").read_text()
            await task.call("Delete", task_v2_pb2.DeleteRequest(id=container))
            await task.call("Shutdown", task_v2_pb2.ShutdownRequest(id=container))


def test_a_namespace_that_is_not_there(containerd: PrivateContainerd) -> None:
    done = containerd.ctr(
        "run",
        "--rm",
        "--with-ns",
        "network:/run/netns/absent",
        "--runtime",
        RUNTIME,
        BUSYBOX,
        unique_id(TEST_PREFIX),
        "true",
        check=False,
    )
    assert done.returncode != 0
    assert "network namespace /run/netns/absent: No such file or directory" in done.stderr


def test_the_hosts_own_namespace(containerd: PrivateContainerd) -> None:
    done = containerd.ctr(
        "run",
        "--rm",
        "--with-ns",
        f"network:/proc/{os.getpid()}/ns/net",
        "--runtime",
        RUNTIME,
        BUSYBOX,
        unique_id(TEST_PREFIX),
        "true",
        check=False,
    )
    assert done.returncode != 0
    assert "is the host's, which a VM cannot have" in done.stderr


def test_a_macvtap_interface_is_connected_as_it_is(containerd: PrivateContainerd) -> None:
    pod = unique_id(TEST_PREFIX)
    subprocess.run(["ip", "netns", "add", pod], check=True)
    try:
        for command in (
            "link add host7 type veth peer name lower",
            "link set lower up",
            "link add link lower name eth0 type macvtap mode bridge",
            "addr add 10.223.8.2/24 dev eth0",
            "link set eth0 up",
        ):
            subprocess.run(["ip", "-n", pod, *command.split()], check=True)
        subprocess.run(["ip", "netns", "add", f"{pod}-peer"], check=True)
        subprocess.run(["ip", "-n", pod, "link", "set", "host7", "netns", f"{pod}-peer"], check=True)
        for command in ("addr add 10.223.8.1/24 dev host7", "link set host7 up"):
            subprocess.run(["ip", "-n", f"{pod}-peer", *command.split()], check=True)
        said = containerd.ctr(
            *("run", "--rm", "--with-ns", f"network:/run/netns/{pod}", "--runtime", RUNTIME, BUSYBOX, pod),
            *("sh", "-c", "ip addr show eth0; ping -c 1 -W 60 10.223.8.1"),
        ).stdout
        assert "10.223.8.2/24" in said
        assert "1 packets received" in said
    finally:
        for name in (pod, f"{pod}-peer"):
            subprocess.run(["ip", "netns", "delete", name], check=False)


@pytest.fixture
def macvtap(tmp_path: Path) -> tuple[str, ...]:
    """Options of `ctr run` for the model of this name."""
    configuration = tmp_path / "configuration.toml"
    configuration.write_text(
        '[hypervisor.qemu]\ndefault_memory = 512\ndefault_vcpus = 2\n[runtime]\ninternetworking_model = "macvtap"\n'
    )
    return ("--runtime", RUNTIME, "--runtime-config-path", str(configuration))


def test_the_model_macvtap(
    containerd: PrivateContainerd, bridge: Bridge, server: Pod, macvtap: tuple[str, ...]
) -> None:
    """The same network by the other model, and the way back; two at a time."""
    four, six = server.addresses
    fetch = f"wget -q -O - http://{four}/passwd && wget -q -O - http://[{six}]/passwd"
    script = f"ip addr show eth0; ls /sys/class/net/eth0/queues; ping -c 1 -W 60 {bridge.gateway} && {fetch}"
    with ThreadPoolExecutor(2) as pool:

        def run_one(_: int) -> str:
            name = unique_id(TEST_PREFIX)
            with bridge.pod(name) as pod, left_as_found(pod):
                namespace = f"network:{pod.netns}"
                command = ("run", "--rm", "--with-ns", namespace, *macvtap, BUSYBOX, name, "sh", "-c", script)
                said = containerd.ctr(*command, timeout=60).stdout
                assert all(address in said for address in pod.addresses)
                return said

        for said in pool.map(run_one, range(2)):
            assert "1 packets received" in said
            assert said.count("root:x:0:0") == 2
            assert "rx-1" in said


def test_a_killed_shim_leaves_no_macvtap_interface(
    containerd: PrivateContainerd, bridge: Bridge, macvtap: tuple[str, ...]
) -> None:
    name = unique_id(TEST_PREFIX)
    with bridge.pod(name) as pod, left_as_found(pod):
        before = interfaces(pod)
        containerd.ctr(
            "run", "-d", "--with-ns", f"network:{pod.netns}", *macvtap, BUSYBOX, name, "sleep", "600", timeout=60
        )
        assert len(interfaces(pod)) == len(before) + 1
        # Another sandbox does it no harm.
        other = unique_id(TEST_PREFIX)
        refused = containerd.ctr(
            *("run", "--rm", "--with-ns", f"network:{pod.netns}", *macvtap, BUSYBOX, other, "true"), check=False
        )
        assert "it is in use" in refused.stderr
        assert len(interfaces(pod)) == len(before) + 1
        assert containerd.kill_sandbox(name, shim=True, vm=False)
        remove(containerd, name)


def test_rates_and_macvtap(containerd: PrivateContainerd, bridge: Bridge, tmp_path: Path) -> None:
    configuration = tmp_path / "configuration.toml"
    configuration.write_text(
        '[hypervisor.qemu]\ntx_rate_limiter_max_rate = 1000000\n[runtime]\ninternetworking_model = "macvtap"\n'
    )
    options = ("--runtime", RUNTIME, "--runtime-config-path", str(configuration))
    name = unique_id(TEST_PREFIX)
    with bridge.pod(name) as pod, left_as_found(pod):
        namespace = f"network:{pod.netns}"
        refused = containerd.ctr("run", "--rm", "--with-ns", namespace, *options, BUSYBOX, name, "true", check=False)
        assert "rate limits of macvtap interfaces are not supported" in refused.stderr


def test_a_queue_for_each_processor(containerd: PrivateContainerd, bridge: Bridge, tmp_path: Path) -> None:
    configuration = tmp_path / "configuration.toml"
    configuration.write_text("[hypervisor.qemu]\ndefault_memory = 512\ndefault_vcpus = 2\n")
    options = ("--runtime", RUNTIME, "--runtime-config-path", str(configuration))
    name = unique_id(TEST_PREFIX)
    with bridge.pod(name) as pod, left_as_found(pod):
        script = f"nproc; ls /sys/class/net/eth0/queues; ping -c 1 -W 60 {bridge.gateway}"
        flags = ("--rm", "--with-ns", f"network:{pod.netns}", *options)
        said = containerd.ctr("run", *flags, BUSYBOX, name, "sh", "-c", script).stdout
        assert said.split()[:5] == ["2", "rx-0", "rx-1", "tx-0", "tx-1"]
        assert "1 packets received" in said


@pytest.mark.parametrize("way", ["rx", "tx"])
def test_a_rate_is_not_exceeded(containerd: PrivateContainerd, bridge: Bridge, tmp_path: Path, way: str) -> None:
    """From below: a slow machine is slower anyway. Without the limit it takes a tenth of that."""
    rate, size = 16_000_000, 4_000_000
    configuration = tmp_path / "configuration.toml"
    configuration.write_text(f"[hypervisor.qemu]\ndefault_memory = 512\n{way}_rate_limiter_max_rate = {rate}\n")
    options = ("--runtime", RUNTIME, "--runtime-config-path", str(configuration))
    name = unique_id(TEST_PREFIX)
    seconds = []
    with bridge.pod(name) as pod, left_as_found(pod), socket.create_server((bridge.gateway, 0)) as server:
        server.settimeout(60)
        peer = f"{bridge.gateway} {server.getsockname()[1]}"
        script = f"nc {peer} >/dev/null" if way == "rx" else f"head -c {size} /dev/zero | nc {peer}"

        def exchange() -> None:
            connection, _ = server.accept()
            with connection:
                begin = time.monotonic()
                if way == "rx":
                    connection.sendall(bytes(size))
                    connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass
                seconds.append(time.monotonic() - begin)

        with ThreadPoolExecutor() as pool:
            peering = pool.submit(exchange)
            flags = ("--rm", "--with-ns", f"network:{pod.netns}", *options)
            containerd.ctr("run", *flags, BUSYBOX, name, "sh", "-c", script)
            peering.result(60)
        # What may come at once, and what waits in buffers when the sender is done, is not in it.
        assert seconds[0] > (size - 1_000_000) * 8 / rate


def test_interfaces_come_change_and_go_while_a_container_runs(containerd: PrivateContainerd, bridge: Bridge) -> None:
    """As `docker network connect` and `disconnect` do it."""
    container = unique_id(TEST_PREFIX)
    with bridge.pod(container) as pod, left_as_found(pod):
        start(containerd, pod, container, "sleep", "600")
        ip = ["ip", "-n", pod.name]

        def until(script: str) -> None:
            """Wait until a script is content in the container."""
            loop = f"i=0; until {script}; do i=$((i+1)); [ $i -lt 300 ] || exit 1; sleep 0.1; done"
            containerd.ctr("task", "exec", "--exec-id", unique_id("e"), container, "sh", "-c", loop)

        try:
            host = f"kh{os.getpid()}"
            add = [
                "link",
                "add",
                "eth7",
                "mtu",
                "1420",
                "type",
                "veth",
                "peer",
                "name",
                host,
                "netns",
                str(os.getpid()),
            ]
            subprocess.run([*ip, *add], check=True)
            for address, where in (
                ("1", ["ip", "addr", "add", "dev", host]),
                ("2", [*ip, "addr", "add", "dev", "eth7"]),
            ):
                subprocess.run([*where, f"10.223.7.{address}/24"], check=True)
            for command in (["ip", "link", "set", host, "up"], [*ip, "link", "set", "eth7", "up"]):
                subprocess.run(command, check=True)
            subprocess.run([*ip, "route", "add", "10.223.99.0/24", "via", "10.223.7.1"], check=True)
            until("ping -c 1 -W 1 10.223.7.1 >/dev/null && ip route | grep -q '10.223.99.0/24 via 10.223.7.1 dev eth7'")
            until("[ $(cat /sys/class/net/eth7/mtu) = 1420 ] && ping -c 1 -W 1 " + bridge.gateway + " >/dev/null")
            subprocess.run([*ip, "addr", "add", "dev", "eth7", "10.223.7.3/24"], check=True)
            until("ip addr show eth7 | grep -q 10.223.7.3/24 && ping -c 1 -W 1 10.223.7.1 >/dev/null")
            subprocess.run([*ip, "link", "set", "eth7", "mtu", "1500"], check=True)
            until("[ $(cat /sys/class/net/eth7/mtu) = 1500 ] && ping -c 1 -W 1 10.223.7.1 >/dev/null")
            # As a container engine does right after it has moved an interface into the namespace.
            subprocess.run([*ip, "link", "set", "eth7", "address", "02:00:00:00:07:07"], check=True)
            until("grep -q 02:00:00:00:07:07 /sys/class/net/eth7/address && ping -c 1 -W 1 10.223.7.1 >/dev/null")
            subprocess.run([*ip, "link", "delete", "eth7"], check=True)
            until(f"[ ! -e /sys/class/net/eth7 ] && ping -c 1 -W 1 {bridge.gateway} >/dev/null")
        finally:
            remove(containerd, container)
