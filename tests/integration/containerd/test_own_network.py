"""A network namespace that the specification asks for anew: engines find it by the task's process id, and fill it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata.protocols.containerd import task_v2_pb2
from kata.ttrpc.typed import Stub
from tests.support import hostnetwork
from tests.support.rawshim import RawShim
from tests.support.waiting import eventually, eventually_async

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

#: Tells its network as it starts, and again when it has a second interface.
_SCRIPT = """
ip address >/first; ip route >>/first
until ip address show eth1 2>/dev/null | grep -q 10.98.7.2; do sleep 0.1; done
ip route >/second.new; mv /second.new /second
sleep 600
"""


def inode(pid: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def inhabitants(namespace: str) -> list[str]:
    """The processes in a network namespace."""
    found = []
    for pid in os.listdir("/proc"):
        try:
            if pid.isdigit() and inode(pid, "net") == namespace:
                found.append(pid)
        except OSError:
            continue  # it has ended
    return found


@contextmanager
def bridge() -> Iterator[str]:
    """A network of the host's, as an engine has one."""
    name = "engine"
    with hostnetwork.alone():
        subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
        # An address that follows from the hardware address would change with each port.
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        yield name


def attach(pid: int, network: str, name: str, address: str, gateway: str = "") -> None:
    """As an engine does: an interface by /proc/PID/ns/net, with an address and a route."""
    host = f"v{name}"
    inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
    for command in (
        f"ip link add {host} type veth peer name {name} netns {pid}",
        f"ip link set {host} master {network} up",
        f"address add {address} dev {name}",
        f"link set {name} up",
        *([f"route add default via {gateway}"] if gateway else []),
    ):
        words = command.split()
        subprocess.run(words if words[0] == "ip" else [*inside, *words], check=True)


async def created(raw: RawShim, task: Stub, container: str) -> int:
    answer = await task.call("Create", raw.create_request(container))
    assert isinstance(answer, task_v2_pb2.CreateTaskResponse)
    return answer.pid


async def test_an_engine_that_fills_it_by_the_tasks_pid(raw: RawShim) -> None:
    with bridge() as network:
        before = hostnetwork.configuration()
        container = raw.bundle("sh", "-c", _SCRIPT)
        task = await raw.task(container)
        pid = await created(raw, task, container)
        assert hostnetwork.configuration() == before, "nothing of a sandbox is in the host's"
        for kind in ("net", "ipc", "uts", "pid", "mnt"):
            assert inode(pid, kind) != inode("self", kind)
        attach(pid, network, "eth0", "10.98.6.2/24", "10.98.6.1")
        await task.call("Start", task_v2_pb2.StartRequest(id=container))
        files = raw.directory / "rootfs"
        first = await eventually_async(
            lambda: (files / "first").read_text() if (files / "first").exists() else "",
            "the container tells",
            lambda said: "10.98.6.0" in said,
        )
        assert "10.98.6.2/24" in first
        assert "default via 10.98.6.1 dev eth0" in first
        attach(pid, network, "eth1", "10.98.7.2/24")
        await eventually_async((files / "second").exists, "an interface that comes later arrives")
        assert "10.98.7.0/24 dev eth1" in (files / "second").read_text()
        await task.call("Kill", task_v2_pb2.KillRequest(id=container, signal=9))
        await task.call("Wait", task_v2_pb2.WaitRequest(id=container))
        await task.call("Delete", task_v2_pb2.DeleteRequest(id=container))
        await task.call("Shutdown", task_v2_pb2.ShutdownRequest(id=container))
        await eventually_async(hostnetwork.configuration, "the host's is as it was", lambda after: after == before)


@pytest.mark.parametrize("killed", ["shim", "vm"])
async def test_it_is_gone_after_a_kill(raw: RawShim, killed: str) -> None:
    with bridge() as network:
        before = hostnetwork.configuration()
        container = raw.bundle()
        task = await raw.task(container)
        pid = await created(raw, task, container)
        namespace = inode(pid, "net")
        attach(pid, network, "eth0", "10.98.6.2/24", "10.98.6.1")
        await task.call("Start", task_v2_pb2.StartRequest(id=container))
        os.kill(raw.pid(container) if killed == "shim" else raw.vmm(container), 9)
        if killed == "vm":
            await task.call("Shutdown", task_v2_pb2.ShutdownRequest(id=container, now=True))
        await eventually_async(lambda: inhabitants(namespace), "nobody is in it", lambda found: not found)
        raw.binary(container, "delete")
        eventually(hostnetwork.configuration, "the host's is as it was", lambda after: after == before)
