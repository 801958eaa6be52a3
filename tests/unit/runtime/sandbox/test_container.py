"""A container and its processes against a guest that is scripted: order, streams, states, and guests that go away."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import empty_pb2

from kata import ttrpc
from kata.errors import AlreadyExists, FailedPrecondition, Internal, InvalidArgument, NotFound
from kata.oci.spec import Process as ProcessSpec
from kata.protocols import agent_pb2, oci_pb2, processes
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.launch.timings import Timings
from kata.runtime.sandbox import container as container_module
from kata.runtime.sandbox import process as process_module
from kata.runtime.sandbox.container import Container
from kata.runtime.sandbox.states import State
from kata.runtime.sandbox.stdio import FdSink, FdSource, Stdio
from kata.runtime.storage.container_files import ContainerPlan
from kata.runtime.storage.shared_tree import SharedTree
from kata.shim.stdio import open_stdio
from kata.ttrpc.typed import handlers
from tests.support.waiting import eventually_async

LIMIT_S = 60
_EMPTY = empty_pb2.Empty()
SPEC: ProcessSpec = {"args": ["true"], "cwd": "/", "env": [], "user": {"uid": 0, "gid": 0}}


class Guest:
    """An agent whose processes end when the test says so."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        #: Of the init process and of the exec process "e".
        self.output: dict[str, asyncio.Queue[bytes]] = {"": asyncio.Queue(), "e": asyncio.Queue()}
        self.exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.fail: dict[str, ttrpc.StatusError] = {}
        self.input = b""
        self.drained = asyncio.Event()
        self.drained.set()
        self.process = oci_pb2.Process()

    async def output_drained(self, ctx: object, payload: bytes) -> bytes:
        await self.drained.wait()
        return b""

    async def release(self, ctx: object, payload: bytes) -> bytes:
        self.calls.append("release")
        return b""

    async def _say(self, name: str) -> Any:
        self.calls.append(name)
        if name in self.fail:
            raise self.fail[name]
        return _EMPTY

    async def create_container(self, request: Any, ctx: object) -> Any:
        return await self._say("create")

    async def start_container(self, request: Any, ctx: object) -> Any:
        return await self._say("start")

    async def exec_process(self, request: Any, ctx: object) -> Any:
        self.process = request.process
        return await self._say("exec")

    async def update_container(self, request: Any, ctx: object) -> Any:
        return await self._say("update")

    async def signal_process(self, request: Any, ctx: object) -> Any:
        return await self._say(f"signal {request.signal}")

    async def pause_container(self, request: Any, ctx: object) -> Any:
        return await self._say("pause")

    async def resume_container(self, request: Any, ctx: object) -> Any:
        return await self._say("resume")

    async def remove_container(self, request: Any, ctx: object) -> Any:
        return await self._say("remove")

    async def close_stdin(self, request: Any, ctx: object) -> Any:
        return await self._say("close stdin")

    async def write_stdin(self, request: Any, ctx: object) -> agent_pb2.WriteStreamResponse:
        self.input += request.data
        return agent_pb2.WriteStreamResponse(len=len(request.data))

    async def read_stdout(self, request: Any, ctx: object) -> agent_pb2.ReadStreamResponse:
        return agent_pb2.ReadStreamResponse(data=await self.output[request.exec_id].get())

    async def read_stderr(self, request: Any, ctx: object) -> agent_pb2.ReadStreamResponse:
        return agent_pb2.ReadStreamResponse()

    async def wait_process(self, request: Any, ctx: object) -> agent_pb2.WaitProcessResponse:
        return agent_pb2.WaitProcessResponse(status=await asyncio.shield(self.exit))


class Setting:
    """One container in that guest, with pipes for streams."""

    def __init__(self, guest: Guest, agent: AgentClient, directory: Path) -> None:
        self.guest = guest
        self.agent = agent
        self.share = SharedTree(directory)
        self.timings = Timings(directory, time.monotonic())
        self.containers: list[Container] = []

    def container(self, stdio: Stdio | None = None, **options: Any) -> Container:
        # Nothing to mount: what is tested here needs no root.
        self.share.add = self.share.remove = lambda *_: None  # type: ignore[method-assign, assignment]
        self.containers.append(
            Container(
                "box",
                self.agent,
                self.share,
                ContainerPlan("box", "/rootfs"),
                stdio or Stdio(),
                self.timings,
                **options,
            )
        )
        return self.containers[-1]

    async def created(self, stdio: Stdio | None = None, **options: Any) -> Container:
        container = self.container(stdio, **options)
        await container.create(agent_pb2.CreateContainerRequest(container_id="box"), timeout=LIMIT_S)
        return container

    async def running(self, stdio: Stdio | None = None) -> Container:
        container = await self.created(stdio)
        await container.start()
        return container

    def end(self, status: int = 0, output: bytes = b"") -> None:
        """The processes write their last words and end."""
        for stream in self.guest.output.values():
            if output:
                stream.put_nowait(output)
            stream.put_nowait(b"")
        self.guest.exit.set_result(status)


async def test_files_are_mounted_and_unmounted_off_the_loop(here: Setting) -> None:
    container = here.container()
    threads = []
    here.share.add = here.share.remove = lambda *_: threads.append(threading.current_thread())  # type: ignore
    await container.create(agent_pb2.CreateContainerRequest(container_id="box"), timeout=LIMIT_S)
    await container.close()
    assert len(threads) == 2
    assert threading.main_thread() not in threads


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Setting]:
    guest = Guest()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    calls = handlers(agent_pb2.DESCRIPTOR.services_by_name["AgentService"], guest)
    calls[processes.SERVICE, processes.DRAINED] = guest.output_drained
    calls[processes.SERVICE, processes.RELEASE] = guest.release
    server = ttrpc.Server(calls)
    serving = asyncio.create_task(server.serve_connection(*await asyncio.open_connection(sock=theirs)))
    agent = await AgentClient.connect(ours)
    setting = Setting(guest, agent, tmp_path / "shared")
    yield setting
    for container in setting.containers:
        for process in (container.init, *container.execs.values()):
            await process.close()
    await agent.close()
    await server.close()
    await serving


def read_all(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(fd, size - len(data))
    return data


async def within(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, LIMIT_S)


class TestLife:
    async def test_from_create_to_delete(self, here: Setting) -> None:
        container = here.container()
        states = [container.refresh()]
        await container.create(agent_pb2.CreateContainerRequest(), timeout=LIMIT_S)
        states.append(container.refresh())
        await container.start()
        states.append(container.refresh())
        here.end(7)
        assert (await within(container.wait())).status == 7
        states.append(container.refresh())
        assert states == [State.CREATING, State.CREATED, State.RUNNING, State.STOPPED]
        assert (await container.delete()).status == 7
        assert here.guest.calls[0:2] == ["create", "start"]
        assert here.guest.calls[-1] == "remove"

    async def test_a_create_that_fails_counts_as_ended(self, here: Setting) -> None:
        here.guest.fail["create"] = ttrpc.StatusError(13, "no")
        container = here.container()
        with pytest.raises(Internal):
            await container.create(agent_pb2.CreateContainerRequest(), timeout=LIMIT_S)
        assert (await within(container.init.wait())).status == 137

    @pytest.mark.parametrize("started", [True, False])
    async def test_the_guest_does_not_end_what_is_killed(
        self, here: Setting, monkeypatch: pytest.MonkeyPatch, started: bool
    ) -> None:
        """Its kernel hangs, or it is hostile: it answers everything, and nothing ends."""
        monkeypatch.setattr(container_module, "KILL_TIMEOUT_S", 0.2)
        here.guest.fail["remove"] = ttrpc.StatusError(4, "container box did not end within 10 s")
        told: asyncio.Queue[str] = asyncio.Queue()
        container = await here.created(does_not_end=told.put_nowait)
        if started:
            await container.start()
            await container.kill(15)
            for _ in range(2):
                await container.kill(9)
        else:
            with pytest.raises(FailedPrecondition, match="did not end"):
                await container.kill(9)
        assert await within(told.get()) == "container box"
        assert told.empty()

    async def test_what_ends_in_time_is_not_told(self, here: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(container_module, "KILL_TIMEOUT_S", 0.5)
        told: asyncio.Queue[str] = asyncio.Queue()
        container = await here.created(does_not_end=told.put_nowait)
        await container.start()
        await container.kill(9)
        here.end(137)
        await within(container.wait())
        with pytest.raises(NotFound):
            await container.kill(9)
        await asyncio.sleep(0.7)
        assert told.empty()

    async def test_killed_before_its_start(self, here: Setting) -> None:
        container = await here.created()
        await container.kill(9)
        assert (await within(container.wait())).status == 137
        assert "signal 9" not in here.guest.calls
        with pytest.raises(FailedPrecondition, match="cannot start container box: it is stopped"):
            await container.start()

    async def test_killed_before_its_start_ends_its_streams(self, here: Setting) -> None:
        """Clients wait for the end of the streams before they delete a container, so one left open is a hang."""
        fed, feeding = os.pipe()
        (reading, writing), (errors, failing) = os.pipe(), os.pipe()
        container = await here.created(Stdio(FdSource(fed), FdSink(writing), FdSink(failing)))
        await container.kill(9)
        assert (await within(asyncio.to_thread(os.read, reading, 1))) == b""
        assert (await within(asyncio.to_thread(os.read, errors, 1))) == b""
        with pytest.raises(BrokenPipeError):
            os.write(feeding, b"nobody reads")
        for fd in (feeding, reading, errors):
            os.close(fd)
        await container.delete()

    async def test_killed_before_its_start_and_before_its_reader_came(self, here: Setting, tmp_path: Path) -> None:
        path = tmp_path / "out"
        os.mkfifo(path)
        container = await here.created(await open_stdio("", str(path), "", terminal=False, environment={}))
        await container.kill(9)
        assert await within(asyncio.to_thread(path.read_bytes)) == b""
        await container.delete()

    async def test_a_signal_after_the_end(self, here: Setting) -> None:
        """CRI stops asking only when it hears NotFound."""
        container = await here.running()
        here.end()
        await within(container.wait())
        with pytest.raises(NotFound, match="container box has already ended"):
            await container.kill(15)
        await container.delete()

    async def test_killed_while_its_vm_ends(self, here: Setting) -> None:
        """Between the end of the VM and that of the container, which has it for its reason."""
        container = await here.running()
        await here.agent.close()
        await container.kill(9)
        assert (await within(container.wait())).status == 137
        await container.delete()

    async def test_what_a_running_container_refuses(self, here: Setting) -> None:
        container = await here.running()
        with pytest.raises(FailedPrecondition, match="cannot delete container box: it is running"):
            await container.delete()
        with pytest.raises(FailedPrecondition, match="cannot start container box: it is running"):
            await container.start()
        with pytest.raises(FailedPrecondition, match="cannot resume container box: it is running"):
            await container.resume()
        here.end()
        await within(container.wait())
        await container.delete()

    async def test_pause_and_resume(self, here: Setting) -> None:
        container = await here.running()
        await container.pause()
        assert container.state is State.PAUSED
        here.guest.fail["resume"] = ttrpc.StatusError(13, "no")
        with pytest.raises(Internal):
            await container.resume()
        assert container.state is State.PAUSED, "what the guest refused has not happened"
        del here.guest.fail["resume"]
        await container.resume()
        assert container.refresh() is State.RUNNING
        here.end()
        await within(container.wait())
        await container.delete()

    async def test_a_guest_that_is_gone(self, here: Setting) -> None:
        container = await here.running()
        await here.agent.close()
        assert (await within(container.wait())).status == 137
        assert (await container.delete()).status == 137, "there is nobody to ask, and nothing left to remove"

    async def test_any_number_of_waiters(self, here: Setting) -> None:
        container = await here.running()
        waiting = [asyncio.create_task(container.wait()) for _ in range(3)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        here.end(3)
        assert [(await within(one)).status for one in waiting[1:]] == [3, 3]
        await container.delete()


class TestStreams:
    async def test_the_exit_is_told_after_the_last_byte(self, here: Setting) -> None:
        reading, writing = os.pipe()
        container = await here.running(Stdio(stdout=FdSink(writing)))
        here.guest.exit.set_result(0)
        here.guest.drained.clear()
        await asyncio.sleep(0.05)
        assert container.init.exit is None, "output is still to come"
        here.guest.output[""].put_nowait(b"last words")
        here.guest.output[""].put_nowait(b"")
        await within(container.wait())
        assert os.read(reading, 100) == b"last words"
        assert os.read(reading, 100) == b"", "the end of the stream can be seen"
        os.close(reading)
        await container.delete()

    async def test_a_consumer_that_does_not_read_holds_the_exit_back(
        self, here: Setting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As under runc, where the process would be blocked: engines close their end when they hear of the exit."""
        monkeypatch.setattr(process_module, "STUCK_CONSUMER_S", 0.02)
        reading, writing = os.pipe()
        container = await here.running(Stdio(stdout=FdSink(writing)))
        here.end(5, b"x" * 1_000_000)
        await asyncio.sleep(0.3)
        assert container.init.exit is None
        read = asyncio.create_task(asyncio.to_thread(read_all, reading))
        assert (await within(container.wait())).status == 5
        assert len(await within(read)) == 1_000_000
        await container.delete()

    async def test_what_the_guest_still_has_holds_the_exit_back(
        self, here: Setting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(process_module, "STUCK_CONSUMER_S", 0.02)
        container = await here.running()
        here.guest.drained.clear()
        here.guest.exit.set_result(5)
        await asyncio.sleep(0.3)
        assert container.init.exit is None
        here.guest.drained.set()
        assert (await within(container.wait())).status == 5, "a child that holds the stream does not hold the exit"

    async def test_a_consumer_that_does_not_read_gets_the_exit_of_what_was_killed(
        self, here: Setting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(process_module, "STUCK_CONSUMER_S", 0.02)
        reading, writing = os.pipe()
        container = await here.running(Stdio(stdout=FdSink(writing)))
        here.end(5, b"x" * 1_000_000)
        await container.kill(9)
        assert (await within(container.wait())).status == 5
        os.close(reading)
        await container.delete()

    async def test_what_a_pipe_would_hold_does_not_hold_the_exit_back(
        self, here: Setting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client may read only when the process has ended."""
        monkeypatch.setattr(process_module, "STUCK_CONSUMER_S", 0.02)
        reading, writing = os.pipe()
        container = await here.running(Stdio(stdout=FdSink(writing)))
        here.guest.drained.clear()
        for _ in range(899):
            here.guest.output[""].put_nowait(b"x" * 100)
        here.end(5, b"x" * 100)
        await eventually_async(here.guest.output[""].empty, "all has left the guest")
        here.guest.drained.set()
        assert (await within(container.wait())).status == 5
        read = asyncio.create_task(asyncio.to_thread(read_all, reading))
        await container.delete()
        assert len(await within(read)) == 90_000, "deleting waits for the rest"

    async def test_output_that_nobody_wants_is_thrown_away(self, here: Setting) -> None:
        container = await here.running()
        here.end(0, b"x" * 100_000)
        await within(container.wait())
        await container.delete()

    async def test_input_and_its_end(self, here: Setting) -> None:
        reading, writing = os.pipe()
        container = await here.running(Stdio(stdin=FdSource(reading)))
        os.write(writing, b"words")
        os.close(writing)
        await eventually_async(lambda: here.guest.calls, "the end of input", lambda calls: "close stdin" in calls)
        assert here.guest.input == b"words"
        here.end()
        await within(container.wait())
        await container.delete()

    async def test_no_input_is_an_end_at_once(self, here: Setting) -> None:
        container = await here.running()
        await eventually_async(lambda: here.guest.calls, "the end of input", lambda calls: "close stdin" in calls)
        here.end()
        await within(container.wait())
        await container.delete()

    async def test_only_a_terminal_has_a_size(self, here: Setting) -> None:
        container = await here.created()
        with pytest.raises(InvalidArgument, match="container box has no terminal"):
            await container.init.resize(rows=1, columns=1)
        await container.kill(9)


class TestLeftOut:
    """What the guest cannot have is named in the log, whenever it is asked for."""

    async def test_of_an_exec(self, here: Setting, caplog: pytest.LogCaptureFixture) -> None:
        container = await here.running()
        newer: ProcessSpec = {
            **SPEC,
            "apparmorProfile": "of-the-host",
            "capabilities": {"bounding": ["CAP_KILL", "CAP_FUTURE"]},
            "execCPUAffinity": {"initial": "0-1"},
        }
        container.add_exec("e", newer, Stdio())
        await container.start_exec("e")
        left_out = "not passed to the guest: execCPUAffinity, capabilities: CAP_FUTURE"
        assert f"exec e of container box: {left_out}" in caplog.text
        assert here.guest.process.Capabilities.Bounding == ["CAP_KILL"]
        assert here.guest.process.ApparmorProfile == ""

    async def test_of_an_update(self, here: Setting, caplog: pytest.LogCaptureFixture) -> None:
        container = await here.running()
        await container.update({"memory": {"limit": 1 << 30, "checkBeforeUpdate": True}, "rdma": {"mlx5": {}}})
        assert "limits of container box: not passed to the guest: memory.checkBeforeUpdate, rdma" in caplog.text


class TestExec:
    async def test_whole(self, here: Setting) -> None:
        container = await here.running()
        process = container.add_exec("e", SPEC, Stdio())
        assert process.state is State.CREATED
        await container.start_exec("e")
        here.end(4)
        assert (await within(process.wait())).status == 4
        assert (await container.delete_exec("e")).status == 4
        with pytest.raises(NotFound, match="container box has no exec e"):
            container.process("e")

    @pytest.mark.parametrize("exec_id", ["", "../e", "-e", "e" * 77, "a/b"])
    async def test_ids_that_are_none(self, here: Setting, exec_id: str) -> None:
        container = await here.running()
        with pytest.raises(InvalidArgument, match="exec id"):
            container.add_exec(exec_id, SPEC, Stdio())

    async def test_ids_that_are_taken(self, here: Setting) -> None:
        container = await here.running()
        container.add_exec("e", SPEC, Stdio())
        for taken in ("e", "box"):
            with pytest.raises(AlreadyExists):
                container.add_exec(taken, SPEC, Stdio())

    async def test_whose_child_goes_on_writing(self, here: Setting) -> None:
        """As under runc, where the stream lasts until nobody has it any more."""
        reading, writing = os.pipe()
        container = await here.running()
        process = container.add_exec("e", SPEC, Stdio(stdout=FdSink(writing)))
        await container.start_exec("e")
        here.guest.output["e"].put_nowait(b"now\n")
        here.guest.exit.set_result(0)
        await within(process.wait())
        deleting = asyncio.create_task(container.delete_exec("e"))
        await asyncio.sleep(0.05)
        here.guest.output["e"].put_nowait(b"late\n")
        here.guest.output["e"].put_nowait(b"")
        assert (await within(deleting)).status == 0
        assert read_all(reading) == b"now\nlate\n"

    async def test_whose_child_holds_the_streams(self, here: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
        """What it has written itself is waited for, however long its reader takes, and nothing else."""
        monkeypatch.setattr(process_module, "STUCK_CONSUMER_S", 0.02)
        reading, writing = os.pipe()
        container = await here.running()
        process = container.add_exec("e", SPEC, Stdio(stdout=FdSink(writing)))
        await container.start_exec("e")
        here.guest.output["e"].put_nowait(b"x" * 100_000)  # more than the pipe takes
        await eventually_async(here.guest.output["e"].empty, "it has left the guest")
        here.guest.exit.set_result(0)
        await within(process.wait())
        taken = asyncio.create_task(process.output_taken())
        await asyncio.sleep(0.1)
        assert not taken.done()
        assert len(await asyncio.to_thread(read_exactly, reading, 100_000)) == 100_000
        await within(taken)
        here.guest.output["e"].put_nowait(b"late\n")
        here.guest.output["e"].put_nowait(b"")
        await within(container.delete_exec("e"))
        assert read_all(reading) == b"late\n"

    async def test_whose_child_never_ends(self, here: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process_module, "STREAM_END_TIMEOUT_S", 0.05)
        container = await here.running()
        process = container.add_exec("e", SPEC, Stdio())
        await container.start_exec("e")
        here.guest.exit.set_result(0)
        await within(process.wait())
        await within(container.delete_exec("e"))
        assert "release" in here.guest.calls, "nobody reads what it still writes"

    async def test_that_is_never_started(self, here: Setting) -> None:
        container = await here.running()
        reading, writing = os.pipe()
        container.add_exec("e", SPEC, Stdio(stdout=FdSink(writing)))
        assert (await container.delete_exec("e")).status == 0, "as runc says"
        assert os.read(reading, 1) == b"", "its streams are closed"
        os.close(reading)

    async def test_that_is_deleted_twice_at_once(self, here: Setting) -> None:
        container = await here.running()
        process = container.add_exec("e", SPEC, Stdio())
        await container.start_exec("e")
        here.end()
        await within(process.wait())
        first, second = await asyncio.gather(
            container.delete_exec("e"), container.delete_exec("e"), return_exceptions=True
        )
        assert getattr(first, "status", None) == 0
        assert isinstance(second, NotFound), second

    @pytest.mark.parametrize("killed", [True, False], ids=["killed", "exited"])
    async def test_that_was_not_started_before_the_container_ended(self, here: Setting, killed: bool) -> None:
        container = await (here.created() if killed else here.running())
        reading, writing = os.pipe()
        process = container.add_exec("e", SPEC, Stdio(stdout=FdSink(writing)))
        if killed:
            await container.kill(9)
        else:
            here.end()
        await within(container.wait())
        assert (await within(process.wait())).status == 137
        assert (await within(asyncio.to_thread(os.read, reading, 1))) == b""
        os.close(reading)
        with pytest.raises(FailedPrecondition, match="cannot start exec e of container box: it is stopped"):
            await container.start_exec("e")

    async def test_that_cannot_be_started_lets_go_of_its_streams(self, here: Setting) -> None:
        """Clients wait for the end of the streams before they delete it."""
        container = await here.running()
        here.guest.fail["exec"] = ttrpc.StatusError(5, "executable file not found")
        reading, writing = os.pipe()
        container.add_exec("e", SPEC, Stdio(stdout=FdSink(writing)))
        with pytest.raises(NotFound):
            await container.start_exec("e")
        assert os.read(reading, 1) == b""
        os.close(reading)
        await container.delete_exec("e")

    async def test_in_a_paused_container(self, here: Setting) -> None:
        container = await here.running()
        await container.pause()
        reading, writing = os.pipe()
        container.add_exec("e", SPEC, Stdio(stdout=FdSink(writing)))
        with pytest.raises(FailedPrecondition, match="cannot exec in container box: it is paused"):
            await container.start_exec("e")
        assert os.read(reading, 1) == b""
        os.close(reading)

    async def test_twice(self, here: Setting) -> None:
        container = await here.running()
        process = container.add_exec("e", SPEC, Stdio())
        await container.start_exec("e")
        with pytest.raises(FailedPrecondition, match="cannot start exec e of container box: it is running"):
            await container.start_exec("e")
        assert process.exit is None, "the one that runs is none the worse"
        with pytest.raises(FailedPrecondition, match="cannot delete exec e of container box: it is running"):
            await container.delete_exec("e")

    async def test_in_a_container_that_has_ended(self, here: Setting) -> None:
        container = await here.running()
        here.end()
        await within(container.wait())
        with pytest.raises(FailedPrecondition, match="cannot exec in container box: it is stopped"):
            container.add_exec("e", SPEC, Stdio())
