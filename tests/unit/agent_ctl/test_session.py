"""Steps against a server with the agent's services, in this process; its handlers keep what they were asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kata.agent_ctl import address
from kata.agent_ctl.automatic import Values
from kata.agent_ctl.catalog import RPCS
from kata.agent_ctl.messages import Log
from kata.agent_ctl.run import Request, Run, read_file
from kata.agent_ctl.script import read_all
from kata.agent_ctl.session import CallFailed, ForeignLink, Link, Options, Session
from kata.cli.signals import Signals
from kata.errors import InvalidArgument, KataError, Unavailable
from kata.protocols import agent_pb2 as pb
from kata.protocols import health_pb2
from kata.ttrpc import Code, Server, StatusError
from kata.ttrpc.typed import handlers, snake_case
from tests.support.terminal import on_a_terminal

AGENT_CTL = str(Path(sys.executable).with_name("kata-agent-ctl"))


class FakeAgent:
    """Has a method for every RPC: keeps the request, and answers with nothing unless `answers` has something."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.answers: dict[str, Callable[[Any], Any]] = {}
        for name, rpc in RPCS.items():
            setattr(self, snake_case(name), self._handler(name, rpc.response))

    def _handler(self, name: str, response: Callable[[], Any]) -> Any:
        async def handle(request: Any, ctx: Any) -> Any:
            self.asked.append((name, request))
            answer = self.answers.get(name, lambda _: response())(request)
            return await answer if asyncio.iscoroutine(answer) else answer

        return handle

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.asked]


class Kept:
    """Output that is kept."""

    def __init__(self) -> None:
        self.data = {1: b"", 2: b""}

    async def write(self, data: bytes, fd: int = 1) -> None:
        self.data[fd] += data

    def close(self) -> None:
        pass


class Made:
    """A session with its agent."""

    def __init__(self, agent: FakeAgent, path: str) -> None:
        self.agent = agent
        self.output = Kept()
        self.path = path
        self.opened = 0

    async def connect(self) -> Link:
        self.opened += 1
        return ForeignLink(await address.connect(address.parse(f"unix://{self.path}")))

    def session(self, **options: Any) -> Session:
        return Session(self.connect, Values(), Options(**options), read_file, self.output, Log("info"))

    async def run(self, *lines: str, **options: Any) -> str:
        """Carry out a script; returns what it has written to standard output."""
        session = self.session(**options)
        try:
            steps = read_all(lines)
            session.check(steps)
            await session.run(steps)
        finally:
            await session.close()
        return self.output.data[1].decode()


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Made]:
    agent = FakeAgent()
    calls = {
        **handlers(pb.DESCRIPTOR.services_by_name["AgentService"], agent),
        **handlers(health_pb2.DESCRIPTOR.services_by_name["Health"], agent),
    }
    server = Server(calls)
    await server.serve_unix(str(tmp_path / "agent.sock"))
    yield Made(agent, str(tmp_path / "agent.sock"))
    await server.close()


def raises(code: Code, message: str) -> Callable[[Any], Any]:
    def answer(_: Any) -> Any:
        raise StatusError(code, message)

    return answer


async def test_every_rpc_reaches_the_agent(made: Made) -> None:
    others = [name for name in RPCS if name != "DestroySandbox"]
    session = made.session()
    session.values = Values(automatic=False)
    assert await session.run(read_all(others))
    assert not await session.run(read_all(["DestroySandbox"]))
    await session.close()
    assert made.agent.names == [*others, "DestroySandbox"]
    assert all(request == RPCS[name].request() for name, request in made.agent.asked)
    assert made.opened == 1


async def test_answers_are_yaml(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.agent.answers["Check"] = lambda _: health_pb2.HealthCheckResponse(status="SERVING")
    assert await made.run("Check", "echo a  b", "StartContainer cid=x") == "status: SERVING\na  b\n"
    said = capsys.readouterr().err.splitlines()
    assert [line.rpartition(",")[0] for line in said] == [
        "kata-agent-ctl: Check: ok",
        "kata-agent-ctl: StartContainer container_id=x: ok",
    ]


async def test_answers_are_lines_of_json(made: Made) -> None:
    made.agent.answers["Check"] = lambda _: health_pb2.HealthCheckResponse(status="SERVING")
    made.agent.answers["StartContainer"] = raises(Code.NOT_FOUND, "container x does not exist")
    output = await made.run("Check", "StartContainer cid=x", "PauseContainer", as_json=True, ignore_errors=True)
    assert [json.loads(line) for line in output.splitlines()] == [
        {"rpc": "Check", "answer": {"status": "SERVING"}},
        {"rpc": "StartContainer", "error": {"code": "NOT_FOUND", "message": "container x does not exist"}},
        {"rpc": "PauseContainer", "container_id": "x", "answer": {}},
    ]


async def test_nothing_is_sent_if_one_command_is_wrong(made: Made) -> None:
    with pytest.raises(InvalidArgument, match="StartContainer has no field 'x'"):
        await made.run("Check", "StartContainer x=1")
    assert (made.agent.asked, made.opened) == ([], 0)


async def test_built_in_commands_need_no_agent(made: Made) -> None:
    output = await made.run("list", "help Check", "sleep 1ms", "repeat 2", "echo x")
    assert output.endswith("x\nx\n")
    assert made.opened == 0


async def test_repeat_and_quit(made: Made) -> None:
    await made.run("repeat 3", "Check", "Version", "quit", "Check")
    assert made.agent.names == ["Check"] * 3 + ["Version"]


async def test_the_first_error_ends_it(made: Made) -> None:
    made.agent.answers["StartContainer"] = raises(Code.FAILED_PRECONDITION, "it is\x1b[2J\nrunning")
    with pytest.raises(CallFailed) as caught:
        await made.run("Check", "StartContainer", "Version")
    assert caught.value.message == "StartContainer: FAILED_PRECONDITION: it is [2J running"
    assert made.agent.names == ["Check", "StartContainer"]


async def test_errors_can_be_ignored(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.agent.answers["StartContainer"] = raises(Code.NOT_FOUND, "no")
    made.agent.answers["SetPolicy"] = raises(Code.UNIMPLEMENTED, "no")
    made.agent.answers["Check"] = raises(99, "what")  # type: ignore[arg-type]
    await made.run("repeat 2", "StartContainer", "SetPolicy", "Check", "Version", ignore_errors=True)
    assert made.agent.names == ["StartContainer", "StartContainer", "SetPolicy", "Check", "Version"]
    said = capsys.readouterr().err
    assert said.count("kata-agent-ctl: StartContainer: NOT_FOUND: no\n") == 2
    assert "SetPolicy: UNIMPLEMENTED: no\nhint: this agent does not have the RPC" in said
    assert "Check: 99: what\n" in said


async def test_an_agent_that_does_not_answer(made: Made) -> None:
    made.agent.answers["WaitProcess"] = lambda _: asyncio.sleep(60)
    with pytest.raises(CallFailed, match="WaitProcess: DEADLINE_EXCEEDED") as caught:
        await made.run("WaitProcess", timeout=0.05)
    assert caught.value.hint is not None
    assert "--timeout" in caught.value.hint


async def test_a_lost_connection_ends_everything(made: Made, tmp_path: Path) -> None:
    """Also if errors are ignored: nothing more could be answered, and a repetition would never end."""

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    made.path = str(tmp_path / "leaves.sock")
    async with await asyncio.start_unix_server(leave, made.path):
        with pytest.raises(Unavailable, match="Check: connection closed"):
            await made.run("repeat -1", "Check", ignore_errors=True)
    assert made.opened == 1


class Simulated(Signals):
    """Signals that a test sends; this process's own are left alone."""

    def __init__(self) -> None:
        self.deliver: Callable[[int], object] = lambda _: None

    def deliver_to(self, receiver: Callable[[int], object]) -> None:
        self.deliver = receiver

    def deliver_in(self, loop: asyncio.AbstractEventLoop, receiver: Callable[[int], object]) -> None:
        self.deliver = lambda number: loop.call_soon(receiver, number)


async def test_a_signal_leaves_time_for_the_end(made: Made) -> None:
    """What gives back has deadlines, which the cancellation before must not be taken for."""

    class SoonEnded(ForeignLink):
        async def close(self) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(60)
            await super().close()

    session = made.session()
    session._link = link = SoonEnded(await address.connect(address.parse(f"unix://{made.path}")))
    signals = Simulated()

    def check(_: Any) -> Any:
        signals.deliver(signal.SIGTERM)
        return RPCS["Check"].response()

    made.agent.answers["Check"] = check
    ended = asyncio.ensure_future(Run(Request(), session, read_all(["Check", "sleep 60s"]), signals).run())
    assert await ended == 128 + signal.SIGTERM
    assert link.client.closed


async def test_the_agent_ends_with_its_sandbox(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    await made.run("CreateSandbox", "DestroySandbox", "Check", "Version")
    assert made.agent.names == ["CreateSandbox", "DestroySandbox"]
    assert "the agent has ended: 2 more command(s) not carried out" in capsys.readouterr().err


def pieces(*parts: bytes) -> Callable[[Any], Any]:
    left = [*parts, b""]
    return lambda _: pb.ReadStreamResponse(data=left.pop(0))


async def test_output_is_read_to_its_end(made: Made) -> None:
    made.agent.answers["ReadStdout"] = pieces(b"one\x1b", b"two")
    made.agent.answers["ReadStderr"] = pieces(b"err")
    await made.run("ReadStdout cid=x", "ReadStderr")
    assert made.output.data == {1: b"one\x1btwo", 2: b"err"}
    assert made.agent.names == ["ReadStdout"] * 3 + ["ReadStderr"] * 2


async def test_a_length_is_one_read(made: Made) -> None:
    made.agent.answers["ReadStdout"] = pieces(b"one", b"two")
    assert await made.run("ReadStdout len=3") == "one"
    assert [request.len for _, request in made.agent.asked] == [3]


async def test_output_as_json(made: Made) -> None:
    made.agent.answers["ReadStdout"] = pieces(b"\xff")
    (line,) = (await made.run("ReadStdout cid=x", as_json=True)).splitlines()
    assert json.loads(line) == {"rpc": "ReadStdout", "container_id": "x", "answer": {"data": "/w=="}}


async def test_the_end_as_older_agents_of_kata_say_it(made: Made) -> None:
    made.agent.answers["ReadStdout"] = raises(Code.INVALID_ARGUMENT, "read meet eof")
    assert await made.run("ReadStdout") == ""


@pytest.fixture
def stdin() -> Any:
    """Replaces standard input by a pipe; returns its other end."""
    saved, (ours, theirs) = os.dup(0), os.pipe()
    os.dup2(ours, 0)
    os.close(ours)
    yield theirs
    os.dup2(saved, 0)
    os.close(saved)


async def test_input_is_written_to_its_end(made: Made, stdin: int) -> None:
    """The agent takes less than it is given; what is left comes again."""
    made.agent.answers["WriteStdin"] = lambda request: pb.WriteStreamResponse(len=min(2, len(request.data)))
    os.write(stdin, b"abcde")
    os.close(stdin)
    await made.run("WriteStdin cid=x exec_id=e")
    assert [request.data for name, request in made.agent.asked if name == "WriteStdin"] == [b"abcde", b"cde", b"e"]
    name, last = made.agent.asked[-1]
    assert (name, last) == ("CloseStdin", pb.CloseStdinRequest(container_id="x", exec_id="e"))


async def test_data_is_one_write(made: Made) -> None:
    await made.run("WriteStdin cid=x data='ls\\n'", 'WriteStdin json://{"container_id": "x"}')
    assert [request.data for _, request in made.agent.asked] == [b"ls\n", b""]


async def test_attach_moves_all_streams_at_once(made: Made, stdin: int) -> None:
    """An echo: none of the streams may wait for another one's end."""
    queue: asyncio.Queue[bytes] = asyncio.Queue()

    def take(request: Any) -> pb.WriteStreamResponse:
        queue.put_nowait(request.data)
        return pb.WriteStreamResponse(len=len(request.data))

    async def give(_: Any) -> pb.ReadStreamResponse:
        return pb.ReadStreamResponse(data=await queue.get())

    made.agent.answers.update(WriteStdin=take, ReadStdout=give, ReadStderr=pieces(b"err"))
    made.agent.answers["CloseStdin"] = lambda _: queue.put_nowait(b"") or RPCS["CloseStdin"].response()  # type: ignore[func-returns-value]
    os.write(stdin, b"abc")
    os.close(stdin)
    async with asyncio.timeout(60):
        await made.run("attach cid=x exec_id=e")
    assert made.output.data == {1: b"abc", 2: b"err"}
    assert {request.exec_id for _, request in made.agent.asked} == {"e"}


async def test_attach_ends_with_the_output(made: Made, stdin: int) -> None:
    made.agent.answers.update(ReadStdout=pieces(b"out"), ReadStderr=pieces())
    async with asyncio.timeout(60):
        await made.run("attach cid=x")
    os.close(stdin)
    assert made.output.data[1] == b"out"


async def test_a_terminal_is_the_users(made: Made) -> None:
    """Keys go to the process as they are, also Ctrl-C, and the process knows the size."""
    typed: asyncio.Queue[bytes] = asyncio.Queue()
    sizes = []

    def take(request: Any) -> pb.WriteStreamResponse:
        typed.put_nowait(request.data)
        return pb.WriteStreamResponse(len=len(request.data))

    async def give(_: Any) -> pb.ReadStreamResponse:
        keys = await typed.get()
        return pb.ReadStreamResponse(data=b"" if keys == b"q" else b"got " + keys.hex().encode())

    def resize(request: Any) -> Any:
        sizes.append((request.row, request.column))
        typed.put_nowait(b"ready")
        return RPCS["TtyWinResize"].response()

    made.agent.answers.update(WriteStdin=take, ReadStdout=give, TtyWinResize=resize)
    argv = [AGENT_CTL, "connect", "--server-address", f"unix://{made.path}"]
    lines = ("ExecProcess cid=x exec_id=e process.Terminal=true", "attach exec_id=e")
    code, said = await asyncio.to_thread(
        on_a_terminal,
        [*argv, *(word for line in lines for word in ("-c", line))],
        (b"got " + b"ready".hex().encode(), b"\x03"),
        (b"got 03", b"q"),
        size=(7, 70),
    )
    assert (code, sizes) == (0, [(7, 70)]), said
    assert "ReadStderr" not in made.agent.names


@pytest.mark.parametrize("line", ["WriteStdin cid=x", "attach"])
async def test_input_that_has_the_commands_is_no_process_s(made: Made, line: str) -> None:
    with pytest.raises(InvalidArgument, match="standard input has the commands"):
        await made.run(line, reads_stdin=False)


async def test_what_does_not_fit_into_a_message(made: Made, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * (4 << 20))
    with pytest.raises(InvalidArgument, match=r"CopyFile: message of .* exceeds"):
        await made.run(f"CopyFile data=file://{tmp_path}/big")


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere", "does not exist"), ("directory", "directory': is a directory"), ("fifo", "not a regular file"),
     ("large", "larger than 4 MiB"), ("a\0b", "cannot read")],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "large").open("wb") as large:
        large.truncate((4 << 20) + 1)
    with pytest.raises(KataError, match=said):
        read_file(f"{tmp_path}/{name}")
