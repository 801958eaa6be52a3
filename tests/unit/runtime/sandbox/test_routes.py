"""What a sandbox answers on its management socket, and the agent's socket beside it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from kata import ttrpc
from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound, Unavailable
from kata.management.client import request, stream
from kata.protocols import agent_pb2, bound, csi_pb2, health_pb2
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.hypervisor.console import RingFile
from kata.runtime.sandbox import watching
from kata.runtime.sandbox.events import Event, Events, Happening
from kata.runtime.sandbox.management import Management
from kata.runtime.sandbox.routes import routes
from kata.runtime.sandbox.states import State
from kata.runtime.sandbox.statistics import of_cgroup, proportional, traffic
from tests.support.waiting import eventually_async

WAIT_S = 20.0


class Container:
    def __init__(self, name: str, state: State, done: list[Any]) -> None:
        self.id = name
        self.state = state
        self.process_spec = {"args": [name]}
        self._done = done

    def refresh(self) -> State:
        return self.state

    async def stats(self) -> agent_pb2.StatsContainerResponse:
        if self.id == "broken":
            raise Unavailable("the guest is gone")
        found = agent_pb2.StatsContainerResponse()
        found.cgroup_stats.memory_stats.usage.usage = 7
        return found

    async def kill(self, number: int) -> None:
        self._done.append(("kill", self.id, number))

    async def pause(self) -> None:
        self._done.append(("pause", self.id))

    async def resume(self) -> None:
        self._done.append(("resume", self.id))


class Sandbox:
    """One with a pod's own container, one that runs, one that is paused, one that has ended."""

    id = "pod"
    what = "sandbox pod"

    def __init__(self, directory: Path, agent: AgentClient) -> None:
        self.done: list[Any] = []
        self.events = Events()
        self.console = directory / "console.log"
        self.agent = agent
        states = {"pod": State.RUNNING, "app": State.RUNNING, "cold": State.PAUSED, "old": State.STOPPED}
        self.containers = {name: Container(name, state, self.done) for name, state in states.items()}

    def container(self, name: str) -> Container:
        if name not in self.containers:
            raise NotFound(f"container {name} does not exist")
        return self.containers[name]

    def living(self) -> list[Container]:
        return [one for one in self.containers.values() if one.state is not State.STOPPED]

    def describe(self) -> dict[str, Any]:
        return {"id": "pod", "interfaces": [{"name": "lo"}], "vm": {"pid": os.getpid(), "vcpus": 2, "memory_mib": 512}}

    def metrics(self) -> None:
        """test_metrics.py has them."""

    async def halt(self, grace_s: float) -> None:
        self.done.append(("halt", grace_s))


class Volumes:
    def __init__(self) -> None:
        self.resized: list[tuple[str, int]] = []

    async def stats(self, path: str) -> csi_pb2.VolumeStatsResponse:
        if path != "/vol ü":
            raise NotFound(f"sandbox pod has no direct volume {path}")
        return csi_pb2.VolumeStatsResponse(usage=[csi_pb2.VolumeUsage(total=3, unit=csi_pb2.VolumeUsage.BYTES)])

    async def resize(self, path: str, size: int) -> None:
        self.resized.append((path, size))


class Agent:
    """What the guest answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, bytes, float | None, dict[str, str]]] = []
        self.exec_goes_on = asyncio.Event()
        self.exec_goes_on.set()

    async def answer(self, ctx: ttrpc.CallContext, payload: bytes) -> bytes:
        self.calls.append((ctx.service, ctx.method, payload, ctx.timeout, dict(ctx.metadata)))
        if ctx.method == "GetIPTables":
            return agent_pb2.GetIPTablesResponse(data=b"*filter\n").SerializeToString()
        if ctx.method == "SetIPTables":
            return agent_pb2.SetIPTablesResponse(data=b"ok").SerializeToString()
        if ctx.method == "PauseContainer":
            raise ttrpc.StatusError(9, "it is stopped", (b"detail",))
        if ctx.method == "ExecProcess":
            await self.exec_goes_on.wait()
        if ctx.method == "WaitProcess":
            await asyncio.Event().wait()
        return payload

    def methods(self) -> list[str]:
        return [call[1] for call in self.calls]


class Setting:
    def __init__(self, directory: Path, sandbox: Sandbox, volumes: Volumes, agent: Agent) -> None:
        self.directory, self.sandbox, self.volumes, self.agent = directory, sandbox, volumes, agent

    async def get(self, url: str, **query: str) -> bytes:
        return await request(self.directory, "GET", url, query=query, timeout=WAIT_S)

    async def post(self, path: str, body: Any) -> bytes:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await request(self.directory, "POST", path, body=raw, timeout=WAIT_S)

    async def connect(self) -> ttrpc.Client:
        url = (await self.get("/agent-url")).decode()
        assert url == f"unix://{self.directory}/agent.sock"
        return await ttrpc.Client.connect_unix(url.removeprefix("unix://"))


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Setting]:
    guest = Agent()
    services = {
        (service.full_name, method.name): guest.answer
        for descriptor in (agent_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
        for service in descriptor.services_by_name.values()
        for method in service.methods
    }
    async with ttrpc.Server(services) as server:
        await server.serve_unix(str(tmp_path / "guest"))
        client = AgentClient(await ttrpc.Client.connect_unix(str(tmp_path / "guest")))
        sandbox, volumes = Sandbox(tmp_path, client), Volumes()

        def make(opened: AsyncExitStack) -> Any:
            return routes(sandbox, str(tmp_path), volumes, opened)  # type: ignore[arg-type]

        served = Management(str(tmp_path), make)
        served.serve(str(tmp_path))
        yield Setting(tmp_path, sandbox, volumes, guest)
        await served.close()
        assert not (tmp_path / "agent.sock").exists()
        await client.close()


async def test_questions(here: Setting) -> None:
    assert json.loads(await here.get("/sandbox"))["id"] == "pod"
    assert json.loads(await here.get("/process")) == {"args": ["pod"]}
    assert json.loads(await here.get("/process", container="app")) == {"args": ["app"]}
    with pytest.raises(NotFound, match="container none does not exist"):
        await here.get("/process", container="none")


async def test_statistics(here: Setting) -> None:
    here.sandbox.containers["broken"] = Container("broken", State.RUNNING, [])
    found = json.loads(await here.get("/stats"))
    assert set(found) == {"time", "containers", "network", "vm"}
    assert set(found["containers"]) == {"pod", "app", "cold"}, (
        "neither the one that has ended nor the one without an answer"
    )
    assert found["containers"]["app"]["memory_bytes"] == 7
    assert found["vm"]["memory_size_bytes"] == 512 << 20
    assert found["vm"]["memory_bytes"] > 0
    assert set(found["network"]["lo"]) == {"rx_bytes", "tx_bytes", "rx_packets", "tx_packets"}


def test_figures_of_a_cgroup() -> None:
    stats = agent_pb2.CgroupStats()
    stats.cpu_stats.cpu_usage.total_usage = 5
    stats.memory_stats.usage.limit = 2**64 - 1
    stats.blkio_stats.io_service_bytes_recursive.add(op="Read", value=3)
    stats.blkio_stats.io_service_bytes_recursive.add(op="Read", value=4)
    stats.blkio_stats.io_service_bytes_recursive.add(op="Discard", value=9)
    found = of_cgroup(stats)
    assert (found["cpu_ns"], found["read_bytes"], found["written_bytes"]) == (5, 7, 0)
    assert found["memory_limit_bytes"] is None
    stats.memory_stats.usage.limit = 1 << 30
    assert of_cgroup(stats)["memory_limit_bytes"] == 1 << 30


def test_figures_of_the_host() -> None:
    assert proportional("00-ff ---p [rollup]\nRss:  9 kB\nPss:                 11 kB\nPss_Dirty: 3 kB\n") == 11 << 10
    table = "Inter-|  x\n face |y\n  eth0: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n  tap0: 5 6 0 0 0 0 0 0 7 8 0 0 0 0 0 0\n"
    assert traffic(table, {"eth0"}) == {"eth0": {"rx_bytes": 1, "rx_packets": 2, "tx_bytes": 3, "tx_packets": 4}}


@pytest.mark.parametrize(
    ("path", "body", "done"),
    [
        ("/stop", {}, [("halt", 10.0)]),
        ("/stop", b"", [("halt", 10.0)]),
        ("/stop", {"timeout": 3}, [("halt", 3.0)]),
        ("/stop", {"force": True}, [("halt", 0.0)]),
        ("/kill", {"signal": 15, "container": "old"}, [("kill", "old", 15)]),
        ("/kill", {"signal": 1}, [("kill", name, 1) for name in ("pod", "app", "cold")]),
        ("/pause", {"container": "app"}, [("pause", "app")]),
        ("/pause", {"container": None}, [("pause", "pod"), ("pause", "app")]),
        ("/resume", {}, [("resume", "cold")]),
    ],
)
async def test_what_acts_on_it(here: Setting, path: str, body: Any, done: list[Any]) -> None:
    assert json.loads(await here.post(path, body)) == {}
    assert here.sandbox.done == done


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/stop", {"force": "yes"}, InvalidArgument),
        ("/stop", {"timeout": -1}, InvalidArgument),
        ("/stop", {"timeout": True}, InvalidArgument),
        ("/stop", b"[]", InvalidArgument),
        ("/stop", b"\xff", InvalidArgument),
        pytest.param("/stop", b"[" * 100_000, InvalidArgument, id="/stop-deep"),
        ("/kill", {}, InvalidArgument),
        ("/kill", {"signal": 0}, InvalidArgument),
        ("/kill", {"signal": 65}, InvalidArgument),
        ("/kill", {"signal": True}, InvalidArgument),
        ("/kill", {"signal": 9, "container": 3}, InvalidArgument),
        ("/kill", {"signal": 9, "container": "none"}, NotFound),
        ("/direct-volume/resize", {"VolumePath": "/v", "Size": "1"}, InvalidArgument),
        ("/direct-volume/resize", {"Size": 1}, InvalidArgument),
    ],
)
async def test_wrong_requests(here: Setting, path: str, body: Any, kind: type[KataError]) -> None:
    with pytest.raises(kind):
        await here.post(path, body)
    assert not here.sandbox.done


async def test_nothing_to_resume(here: Setting) -> None:
    here.sandbox.containers["cold"].state = State.RUNNING
    with pytest.raises(FailedPrecondition, match="sandbox pod has no container that is paused"):
        await here.post("/resume", {})


async def test_kata_s_paths(here: Setting) -> None:
    assert json.loads(await here.get("/direct-volume/stats", path="/vol ü")) == {
        "usage": [{"available": 0, "total": 3, "used": 0, "unit": 1}],
        "volume_condition": {"abnormal": False, "message": ""},
    }
    with pytest.raises(NotFound):
        await here.get("/direct-volume/stats", path="/other")
    await here.post("/direct-volume/resize", {"VolumePath": "/vol", "Size": 1 << 40})
    assert here.volumes.resized == [("/vol", 1 << 40)]
    assert await here.get("/iptables") == b"*filter\n"
    assert await request(here.directory, "PUT", "/ip6tables", body=b"rules", timeout=WAIT_S) == b"ok"
    sent = agent_pb2.SetIPTablesRequest.FromString(here.agent.calls[-1][2])
    assert (sent.is_ipv6, sent.data) == (True, b"rules")
    assert await request(here.directory, "PUT", "/policy", body=b"[endpoints]\n", timeout=WAIT_S) == b""
    assert here.agent.methods()[-1] == "SetPolicy"
    assert agent_pb2.SetPolicyRequest.FromString(here.agent.calls[-1][2]).policy == "[endpoints]\n"
    with pytest.raises(InvalidArgument, match="the policy is not text in UTF-8"):
        await request(here.directory, "PUT", "/policy", body=b"\xff", timeout=WAIT_S)


class TestEvents:
    async def test_as_they_happen(self, here: Setting) -> None:
        async with stream(here.directory, "/events", timeout=WAIT_S) as pieces:
            here.sandbox.events.tell(Event(Happening.CONTAINER_EXITED, "app", {"exit_status": 3}, time=5.0))
            piece = await anext(pieces)
            assert piece.startswith(b"data: ")
            assert piece.endswith(b"\n\n")
            told = {"type": "container-exited", "container": "app", "detail": {"exit_status": 3}, "time": 5.0}
            assert json.loads(piece.removeprefix(b"data: ")) == told
        await eventually_async(lambda: not here.sandbox.events._listeners, "the client is forgotten")

    async def test_a_silent_sandbox(self, here: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(watching, "_KEEP_ALIVE_S", 0.05)
        async with stream(here.directory, "/events", timeout=WAIT_S) as pieces:
            assert await anext(pieces) == b":\n\n"

    async def test_a_client_that_is_too_slow(self, here: Setting) -> None:
        async with stream(here.directory, "/events", timeout=WAIT_S) as pieces:
            for number in range(2 * watching.MAX_QUEUE):
                here.sandbox.events.tell(Event(Happening.OOM, str(number)))
            got = b"".join([piece async for piece in pieces])
        assert got.count(b"data: ") == watching.MAX_QUEUE
        assert not here.sandbox.events._listeners


class TestConsole:
    async def test_its_end(self, here: Setting) -> None:
        assert await here.get("/console") == b""
        ring = RingFile(here.sandbox.console)
        ring.write(b"x" * 100_000 + b"\n\x1b[31mred\x1b[0m\x07\n")
        said = await here.get("/console")
        assert said.endswith(b"\nred\n")
        assert 60_000 < len(said) < 65_536
        ring.close()

    async def test_what_follows(self, here: Setting) -> None:
        ring = RingFile(here.sandbox.console, limit=4096)
        ring.write(b"first\n")
        async with stream(here.directory, "/console", query={"follow": "1"}, timeout=WAIT_S) as pieces:
            assert await anext(pieces) == b"first\n"
            ring.write(b"\x1b[3")
            ring.write(b"1msecond\n" + b"y" * 3000 + b"\n")
            said = b""
            while not said.endswith(b"y\n"):
                said += await anext(pieces)
            assert said.startswith(b"second\nyyy")
            ring.write(b"z" * 1500 + b"\nlast\n")
            said = b""
            while not said.endswith(b"last\n"):
                said += await anext(pieces)
        ring.close()


class TestAgentSocket:
    async def test_calls_are_passed_on_as_they_are(self, here: Setting) -> None:
        async with await here.connect() as client:
            payload = b"\x0a\x03any"
            metadata = {"traceparent": "00-1-2-01"}
            assert await client.call("grpc.Health", "Check", payload, timeout=5, metadata=metadata) == payload
            assert await client.call("grpc.AgentService", "GetMetrics") == b""
        service, method, sent, timeout, said = here.agent.calls[0]
        assert (service, method, sent, said) == ("grpc.Health", "Check", payload, metadata)
        assert timeout == pytest.approx(5, abs=4)
        assert here.agent.calls[1][3] is None

    async def test_errors_are_passed_on_as_they_are(self, here: Setting) -> None:
        async with await here.connect() as client:
            with pytest.raises(ttrpc.StatusError) as caught:
                await client.call("grpc.AgentService", "PauseContainer")
            assert (caught.value.code, caught.value.message, caught.value.details) == (9, "it is stopped", (b"detail",))
            with pytest.raises(ttrpc.StatusError, match="not served here"):
                await client.call("kata.Standby", "WarmUp")

    async def test_many_calls_at_once(self, here: Setting) -> None:
        async with await here.connect() as client:
            big = b"\x0a\x80\x80\x40" + b"x" * (1 << 20)
            calls = [client.call("grpc.AgentService", "CopyFile", big, timeout=WAIT_S) for _ in range(50)]
            assert await asyncio.gather(*calls) == [big] * 50

    async def test_a_call_ends_with_its_caller(self, here: Setting) -> None:
        client = await here.connect()
        waiting = asyncio.ensure_future(client.call("grpc.AgentService", "WaitProcess"))
        await eventually_async(lambda: "WaitProcess" in here.agent.methods(), "the call arrives")
        await client.close()
        with pytest.raises(ttrpc.ConnectionClosed):
            await waiting

    @pytest.mark.parametrize("early", [False, True], ids=["once it runs", "while it is started"])
    async def test_a_process_that_is_bound_ends_with_its_connection(self, here: Setting, early: bool) -> None:
        message = agent_pb2.ExecProcessRequest(container_id="app", exec_id="e1").SerializeToString()
        free = agent_pb2.ExecProcessRequest(container_id="app", exec_id="e2").SerializeToString()
        client = await here.connect()
        await client.call("grpc.AgentService", "ExecProcess", free)
        if early:
            here.agent.exec_goes_on.clear()
        starting = asyncio.ensure_future(
            client.call("grpc.AgentService", "ExecProcess", message, metadata={bound.KEY: bound.CONNECTION})
        )
        await eventually_async(lambda: here.agent.methods().count("ExecProcess") == 2, "the call arrives")
        if not early:
            await starting
        await client.close()
        await asyncio.gather(starting, return_exceptions=True)
        here.agent.exec_goes_on.set()
        await eventually_async(lambda: "SignalProcess" in here.agent.methods(), "it is killed")
        killed = [
            agent_pb2.SignalProcessRequest.FromString(call[2])
            for call in here.agent.calls
            if call[1] == "SignalProcess"
        ]
        assert [(one.container_id, one.exec_id, one.signal) for one in killed] == [("app", "e1", 9)]
