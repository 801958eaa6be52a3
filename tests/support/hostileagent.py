"""A guest that is a test double: no VM, and in the agent's place a process that misbehaves in one of many ways.

    launcher(PATH)   writes a launcher of the shim whose sandboxes have such a guest; a bundle's file `way` says which
    python -m tests.support.hostileagent WAY FD      the process, at the other end of the agent's channel

All else is real: the shim's processes, its Task service, state directory, streams and ledger.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kata.ttrpc import frames
from kata.ttrpc.connection import Connection, RequestReceived, Role
from kata.ttrpc.envelope import Response, Status, response_parts

if TYPE_CHECKING:
    from kata.runtime.hypervisor.base import VmPlan

REPOSITORY = Path(__file__).parents[2]
#: What a person's terminal would take for something else than text.
EVIL = "\x1b]0;owned\x07\x1b[2J\nlevel=info msg=forged\r\x00‮"
MIB = 1 << 20

_TEMPLATE = """#!{interpreter} -IS
import sys

sys.path[:0] = {path!r}
from tests.support import hostileagent

hostileagent.install()
from kata.shim.main import main

main()
"""


def launcher(target: Path) -> None:
    """Write a launcher of the shim."""
    from kata.shim import launcher as own

    *_, line = (line for line in own.launcher_text().splitlines() if line.startswith("sys.path"))
    path = [str(REPOSITORY), *eval(line.partition("= ")[2])]
    text = _TEMPLATE.format(interpreter=os.path.realpath(sys.executable), path=path)
    target.write_text(text)
    target.chmod(0o755)


def install() -> None:
    """In the shim: its VMs are such guests, and it waits for seconds where it would wait for minutes."""
    from kata.runtime.agent_client.client import AgentClient
    from kata.runtime.hypervisor import factory
    from kata.runtime.sandbox import container, flush, health

    # The bundle is the working directory.
    way = Path("way").read_text()

    def create(plan: VmPlan, *, memory: int | None = None) -> HostileVm:
        return HostileVm(plan, way)

    factory.create = create  # type: ignore[assignment]
    defaults: Any = AgentClient._call.__kwdefaults__
    defaults["timeout"] = 3.0
    container.KILL_TIMEOUT_S = 2.0
    flush.FLUSH_TIMEOUT_S = 2.0
    health._INTERVAL_S, health._ANSWER_TIMEOUT_S = 0.5, 2.0


class HostileVm:
    """What the sandbox takes for its VM (`kata.runtime.hypervisor.base.VirtualMachine`)."""

    share_pid = 0
    is_failing = False
    why_ended = ""

    def __init__(self, plan: VmPlan, way: str) -> None:
        self.pid = 0
        self.console = plan.run_dir / "console.log"
        self._plan = plan
        self._way = way
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: asyncio.Future[int] | None = None
        self._ours: socket.socket | None = None

    async def start(self, timeout: float = 0) -> None:
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        self.console.write_text(EVIL)
        with theirs:
            path = ":".join(dict.fromkeys(entry for entry in sys.path if entry))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.hostileagent", self._way, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                cwd=REPOSITORY,
                env={**dict(self._plan.environment), "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
            )
        self.pid = self._process.pid
        self._ended = asyncio.ensure_future(asyncio.to_thread(self._process.wait))

    def channel(self, name: str) -> socket.socket:
        assert self._ours is not None
        return self._ours

    async def wait(self) -> Any:
        from kata.runtime.hypervisor.base import VmExit

        assert self._ended is not None
        return VmExit(await asyncio.shield(self._ended), False, "")

    async def stop(self, timeout: float = 0) -> Any:
        self.kill()
        return await self.wait()

    def kill(self, why: str = "") -> None:
        self.why_ended = self.why_ended or why
        if self._process is not None:
            self._process.kill()

    async def resize(self, vcpus: int, memory_mib: int, timeout: float = 0) -> Any:
        from kata.runtime.hypervisor.base import Resized

        return Resized(self._plan.vcpus, self._plan.memory_mib)

    async def vcpu_threads(self) -> list[int]:
        return []

    def console_tail(self, lines: int = 20) -> str:
        from kata.runtime.hypervisor.console import tail

        return tail(self.console, lines)


# ---------------------------------------------------------------------------------------------------------- the process


class Agent:
    """Answers what a well-behaved one would, but for what its way is."""

    def __init__(self, channel: socket.socket, way: str) -> None:
        self._channel = channel
        self._connection = Connection(Role.SERVER)
        self._way: Callable[[Agent, int, str], bool | None] = WAYS[way]
        #: Calls that wait, by method.
        self.waiting: dict[str, list[int]] = {}

    def run(self) -> None:
        """Serve until the host has gone."""
        while data := self._channel.recv(1 << 16):
            for event in self._connection.feed(data):
                if isinstance(event, RequestReceived):
                    self._called(event.stream_id, event.request.method)

    def _called(self, stream: int, method: str) -> None:
        if self._way(self, stream, method):
            return
        if method in ("WaitProcess", "GetOOMEvent", "ReadStdout", "ReadStderr", "Drained", "Follow"):
            self.waiting.setdefault(method, []).append(stream)
            return
        self.answer(stream, b"\x08\x01" if method == "Check" else b"")

    def answer(self, stream: int, payload: bytes = b"", status: Status | None = None) -> None:
        self.send(frames.encode(stream, frames.RESPONSE, 0, response_parts(Response(status or Status(), payload))))

    def send(self, data: bytes) -> None:
        self._channel.sendall(data)


def _flood(agent: Agent, stream: int, method: str) -> bool | None:
    """Answers calls that have ended, as fast as it can."""
    if method != "StartContainer":
        return None
    agent.answer(stream)
    junk = b"".join(frames.encode(1, frames.RESPONSE, 0, (b"",)) for _ in range(1000))
    while True:
        agent.send(junk)


def _lengths(agent: Agent, stream: int, method: str) -> bool | None:
    """Announces four gigabytes, and sends what it has of them."""
    if method != "StartContainer":
        return None
    agent.send(frames.HEADER.pack(0xFFFF_FFFF, stream, frames.RESPONSE, 0))
    while True:
        agent.send(bytes(MIB))


def _announces(agent: Agent, stream: int, method: str) -> bool | None:
    """Announces the largest message that there can be, and sends nothing of it."""
    if method != "StartContainer":
        return None
    agent.send(frames.HEADER.pack(frames.MAX_MESSAGE, stream, frames.RESPONSE, 0))
    return True


def _late(agent: Agent, stream: int, method: str) -> bool | None:
    """Answers each call twice, the second time when the next one comes."""
    if method == "Check":
        return None
    agent.waiting.setdefault("late", []).append(stream)
    for late in agent.waiting["late"][-50:]:
        agent.answer(late, b"\x08\x05")
    return method not in ("StartContainer",)


def _others(agent: Agent, stream: int, method: str) -> bool | None:
    """Answers all other calls that wait, when one comes, with what belongs to this one."""
    if method != "StartContainer":
        return None
    agent.answer(stream)
    for waiting in agent.waiting.values():
        for one in waiting:
            agent.answer(one, b"\x0a\x04spam\x08\x07")
    return True


def _stops_reading(agent: Agent, stream: int, method: str) -> bool | None:
    """Reads nothing more once a container runs."""
    if method != "WriteStdin":
        return None
    time.sleep(3600)
    return True


def _strings(agent: Agent, stream: int, method: str) -> bool | None:
    """Refuses with four megabytes of text that is more than text."""
    if method != "StartContainer":
        return None
    agent.answer(stream, status=Status(13, (EVIL * (4 * MIB // len(EVIL.encode())))[: 3 * MIB]))
    return True


def _output(agent: Agent, stream: int, method: str) -> bool | None:
    """Has output without an end."""
    if method != "ReadStdout":
        return None
    agent.answer(stream, b"\x0a\x80\x80\x40" + bytes(MIB))
    return True


def _statistics(agent: Agent, stream: int, method: str) -> bool | None:
    """Has four megabytes of statistics, of the largest numbers that there are."""
    if method != "StatsContainer":
        return None
    from kata.protocols import agent_pb2

    stats = agent_pb2.StatsContainerResponse()
    group, most = stats.cgroup_stats, 2**64 - 1
    group.cpu_stats.cpu_usage.total_usage = group.memory_stats.usage.usage = group.pids_stats.current = most
    for _ in range(60_000):
        group.blkio_stats.io_service_bytes_recursive.add(major=most, minor=most, op=EVIL, value=most)
    agent.answer(stream, stats.SerializeToString()[: 4 * MIB - 1000])
    return True


def _types(agent: Agent, stream: int, method: str) -> bool | None:
    """Answers with messages of other types, and with bytes that are none."""
    if method not in ("WaitProcess", "StatsContainer", "ReadStdout", "ReadStderr"):
        return None
    agent.answer(
        stream, b"\x0a\xff\xff\xff\xff\x0f" if method != "WaitProcess" else b"\x08\xff\xff\xff\xff\xff\xff\x01"
    )
    return True


def _events(agent: Agent, stream: int, method: str) -> bool | None:
    """Tells of lack of memory without an end, of containers that there are and that there are not."""
    if method != "GetOOMEvent":
        return None
    name = os.environ.get("KATA_SANDBOX_DIR", "").rpartition("/")[2]
    agent.waiting.setdefault("oom", []).append(stream)
    known = name.partition("@")[0] if len(agent.waiting["oom"]) % 2 else EVIL * 1000
    agent.answer(stream, b"\x0a" + _varint(len(known.encode())) + known.encode())
    return True


def _varint(number: int) -> bytes:
    from kata.ttrpc.wire import varint

    return varint(number)


def _calls(agent: Agent, stream: int, method: str) -> bool | None:
    """Calls its caller."""
    if method != "StartContainer":
        return None
    agent.send(frames.encode(2, frames.REQUEST, 0, (b"",)))
    return True


def _unopened(agent: Agent, stream: int, method: str) -> bool | None:
    """Answers what will be asked."""
    if method != "StartContainer":
        return None
    for number in range(50):
        agent.answer(stream + 2 + 2 * number, b"\x08\x01")
    return True


def _silent(agent: Agent, stream: int, method: str) -> bool | None:
    """Says nothing more, once a container runs."""
    if method != "StartContainer":
        return None
    agent.answer(stream)
    time.sleep(3600)
    return True


WAYS: dict[str, Callable[[Agent, int, str], bool | None]] = {
    way.__name__.removeprefix("_").replace("_", "-"): way
    for way in (
        _flood, _lengths, _announces, _late, _others, _stops_reading, _strings, _output, _statistics, _types, _events,
        _calls, _unopened, _silent,
    )
}  # fmt: skip

if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    Agent(socket.socket(fileno=int(sys.argv[2])), sys.argv[1]).run()
