"""TCP between the host and a VM on a bridge: a container on a CNI network, and QEMU with a tap device on it.

QEMU alone has the same VM and agent without a sandbox: its tap device is on the bridge itself, where a sandbox has a
veth pair and traffic control in between.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.bare import default_plan, run_bare
from benchmarks.figures import alternate
from benchmarks.stage import Stage
from kata.errors import Internal
from kata.linux.tap import open_tap
from kata.protocols import types_pb2
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.hypervisor.devices import NetworkDevice
from tests.support.cni import Bridge
from tests.support.containerd import unique_id
from tests.support.images import BUSYBOX

_BRIDGE = "katabench1"
_TAP, _MAC = "katabench-tap", "02:00:00:00:00:99"
_MEGABYTES = 200
_BYTES = _MEGABYTES * 1_000_000
_PIECE = 1 << 20
_TIMEOUT_S = 90.0
#: Each run takes seconds.
_MAX_RUNS = 3

#: The guest's end. busybox's `nc` writes 1 KiB at a time, so a web server sends; `nc` reports that it is ready, and
#: waits until the host has received everything.
_TAKE = "nc {address} {port} >/dev/null </dev/null"
_SEND = "truncate -s {bytes} /dev/shm/zeros && httpd -p 80 -h /dev/shm && " + _TAKE
_DIRECTIONS = {"to the host": _SEND, "from the host": _TAKE}


def measure(stage: Stage) -> None:
    with Bridge(_BRIDGE, stage.directory) as bridge, bridge.pod("katabench1-up"):
        # The bridge has its address from its first pod on.
        for direction, script in _DIRECTIONS.items():
            actions: dict[str, Callable[[], float]] = {
                name: partial(_in_container, stage, bridge, options, direction, script)
                for name, options in stage.contenders.items()
            }
            actions["bare qemu"] = partial(_in_bare_vm, stage, bridge, direction, script)
            stage.record(f"TCP {direction}", "MB/s", alternate(min(stage.runs, _MAX_RUNS), actions, warm_up=False))


def _in_container(stage: Stage, bridge: Bridge, options: tuple[str, ...], direction: str, script: str) -> float:
    container = unique_id("bench")
    with bridge.pod(container) as pod, _peer(bridge.gateway, direction) as peer:
        flags = ("--rm", "--with-ns", f"network:{pod.netns}")
        command = script.format(address=bridge.gateway, port=peer.port, bytes=_BYTES)
        stage.containerd.ctr("run", *flags, *options, BUSYBOX, container, "sh", "-c", command, timeout=_TIMEOUT_S)
        return peer.rate()


def _in_bare_vm(stage: Stage, bridge: Bridge, direction: str, script: str) -> float:
    with _peer(bridge.gateway, direction) as peer:
        command = script.format(address=bridge.gateway, port=peer.port, bytes=_BYTES)
        (tap,) = open_tap(_TAP)
        try:
            subprocess.run(["ip", "link", "set", _TAP, "master", _BRIDGE, "up"], check=True)
            run_bare(default_plan(stage.directory), command, partial(_plug, tap, f"{bridge.subnet}.250"))
        finally:
            os.close(tap)
        return peer.rate()


async def _plug(tap: int, own: str, vm: VirtualMachine, agent: AgentClient) -> None:
    """Hot-plug a NIC on the tap device, and configure its interface."""
    path = await vm.plug(NetworkDevice(id="net0", taps=(tap,), mac=_MAC))
    address = types_pb2.IPAddress(family=types_pb2.v4, address=own, mask="24")
    interface = types_pb2.Interface(
        device="eth0", name="eth0", IPAddresses=[address], mtu=1500, hwAddr=_MAC, devicePath=path
    )
    await agent.update_interface(interface)


class _Peer:
    """The host's end of one connection."""

    def __init__(self, address: str, *, sends: bool) -> None:
        self._listener = socket.create_server((address, 0))
        self._listener.settimeout(_TIMEOUT_S)
        self.port = self._listener.getsockname()[1]
        self._rate = 0.0
        self._thread = threading.Thread(target=self._send if sends else self._take)
        self._thread.start()

    def _take(self) -> None:
        connection, (guest, _) = self._listener.accept()
        with connection, socket.create_connection((guest, 80), _TIMEOUT_S) as web:
            web.sendall(b"GET /zeros HTTP/1.0\r\n\r\n")
            answer = web.recv(_PIECE)
            begin = time.perf_counter()
            rest = 0
            while piece := web.recv(_PIECE):
                rest += len(piece)
            seconds = time.perf_counter() - begin
        if len(answer) + rest >= _BYTES:
            self._rate = rest / 1_000_000 / seconds

    def _send(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            piece = bytes(1_000_000)
            begin = time.perf_counter()
            for _ in range(_MEGABYTES):
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            # The other end closes when it has received everything.
            connection.recv(1)
            self._rate = _BYTES / 1_000_000 / (time.perf_counter() - begin)

    def rate(self) -> float:
        """Wait for the end of the connection, and return MB/s.

        Raises:
            Internal: not everything was transferred.
        """
        self._thread.join(_TIMEOUT_S)
        if not self._rate:
            raise Internal("the connection ended before everything was transferred")
        return self._rate

    def close(self) -> None:
        self._listener.close()


@contextmanager
def _peer(address: str, direction: str) -> Iterator[_Peer]:
    peer = _Peer(address, sends=direction == "from the host")
    try:
        yield peer
    finally:
        peer.close()
