"""Carry out steps, one after the other, over one connection to an agent.

ReadStdout and ReadStderr without a length, and WriteStdin without data, move a whole stream: to standard output or
error, from standard input. `attach` moves all three at once.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.protobuf.message import DecodeError, Message

from kata import ttrpc
from kata.agent_ctl import render
from kata.agent_ctl.automatic import ForeignGuest, Guest, Values, build
from kata.agent_ctl.catalog import RPCS
from kata.agent_ctl.messages import Log, say
from kata.agent_ctl.output import Output
from kata.agent_ctl.request import ReadFile
from kata.agent_ctl.script import FOR_EVER, Attach, Call, Pair, Quit, Say, Sleep, Step
from kata.cli import terminal
from kata.cli.streams import HostSource
from kata.errors import Internal, InvalidArgument, Unavailable
from kata.protocols import agent_pb2
from kata.runtime.agent_client.client import END_OF_STREAM, WRITE_SIZE, shown
from kata.ttrpc.typed import Rpc

_READS = {"ReadStdout": 1, "ReadStderr": 2}
#: After it the agent ends: nothing that follows could be answered.
_LAST = "DestroySandbox"


class Link(Guest, Protocol):
    """A connection to an agent, and what belongs to it on the host."""

    @property
    def client(self) -> ttrpc.Client:
        """The connection."""

    async def before(self, request: Message) -> None:
        """Prepare on the host what a request needs. Raises KataError."""

    async def after(self, request: Message, *, done: bool) -> None:
        """Give back what is not needed any more after a request that the agent has carried out, or has not."""

    def last_words(self) -> str | None:
        """A hint why the connection ended, if anything is known."""

    async def close(self) -> None:
        """Close the connection, and give everything back. Idempotent."""


class ForeignLink(ForeignGuest):
    """A connection to an agent that others have started."""

    def __init__(self, client: ttrpc.Client) -> None:
        self.client = client

    async def before(self, request: Message) -> None:
        """Implement Link."""

    async def after(self, request: Message, *, done: bool) -> None:
        """Implement Link."""

    def last_words(self) -> str | None:
        """Implement Link."""
        return None

    async def close(self) -> None:
        """Implement Link."""
        await self.client.close()


class CallFailed(Internal):
    """A call ended with a gRPC status other than OK.

    Attributes:
        status: its name, such as NOT_FOUND, or its number.
        said: the agent's message.
    """

    def __init__(self, rpc: Rpc, error: ttrpc.StatusError) -> None:
        self.code = error.code
        self.status = _STATUS.get(error.code, str(error.code))
        self.said = shown(error.message)
        super().__init__(f"{rpc.name}: {self.status}: {self.said}", hint=_HINTS.get(int(error.code)))


_STATUS = {int(code): code.name for code in ttrpc.Code}
_HINTS = {
    int(ttrpc.Code.UNIMPLEMENTED): "this agent does not have the RPC; `Version` tells which one it is",
    int(ttrpc.Code.DEADLINE_EXCEEDED): "--timeout sets how long an answer may take, 0 is for ever",
}


@dataclass(frozen=True)
class Options:
    """How steps are carried out.

    Attributes:
        timeout: seconds for each call; None for no limit.
        ignore_errors: whether to go on after a call that failed.
        as_json: whether each answer is printed as a line of JSON.
        reads_stdin: whether standard input is free for a process; else it has the commands.
    """

    timeout: float | None = None
    ignore_errors: bool = False
    as_json: bool = False
    reads_stdin: bool = True


@dataclass
class Session:
    """One connection, opened with the first step that needs it, and what commands hand on.

    Attributes:
        connect: opens it; raises KataError.
        values: what the next command starts from.
        options: see there.
        read: reads the files that arguments name.
        output: where answers go.
        log: where it is told what is done.
    """

    connect: Callable[[], Awaitable[Link]]
    values: Values
    options: Options
    read: ReadFile
    output: Output
    log: Log
    _link: Link | None = field(default=None, init=False)
    _terminals: set[tuple[str, str]] = field(default_factory=set, init=False)

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._link:
            link, self._link = self._link, None
            await link.close()

    def check(self, steps: Iterable[Step]) -> None:
        """Build the requests of all steps, and send none.

        Raises:
            InvalidArgument: an argument is wrong.
            KataError: a file cannot be read.
        """
        values = self.values
        for step in steps:
            if isinstance(step.action, Quit):
                return
            if isinstance(step.action, Call | Attach):
                rpc, arguments = _called(step.action)
                _, values = build(rpc, arguments, values, ForeignGuest(), self.read)
                if not self.options.reads_stdin and (
                    isinstance(step.action, Attach) or self._is_whole(rpc, step.action)
                ):
                    raise InvalidArgument(
                        f"{rpc.name if isinstance(step.action, Call) else 'attach'}: standard input has the commands",
                        hint="give the commands with -c, or the data with data=…",
                    )

    async def run(self, steps: Sequence[Step]) -> bool:
        """Carry out steps, until one fails, the agent has ended, or one is `quit`; returns whether there may be more.

        Raises:
            KataError: a step failed. Errors of single calls are only reported if they are to be ignored.
            OSError: the output cannot be written.
        """
        for number, step in enumerate(steps, 1):
            if not await self.step(step):
                if (left := len(steps) - number) and not isinstance(step.action, Quit):
                    say(f"the agent has ended: {left} more command(s) not carried out")
                return False
        return True

    async def step(self, step: Step) -> bool:
        """Carry out one step; returns whether there may be another one.

        Raises:
            KataError, OSError: as `run`.
        """  # noqa: DOC501 - the action raises it
        for _ in itertools.count() if step.times == FOR_EVER else range(step.times):
            try:
                if not await self._once(step):
                    return False
            except CallFailed as error:
                if self.options.as_json:
                    await self._write_error(step, error)
                if not self.options.ignore_errors:
                    raise
                say(error.message, hint=error.hint)
            await asyncio.sleep(0)  # what is repeated may never wait for anything: let a signal end it
        return True

    async def _once(self, step: Step) -> bool:
        action = step.action
        if isinstance(action, Quit):
            return False
        if isinstance(action, Say):
            await self.output.write(action.text.encode(errors="surrogateescape"))
        elif isinstance(action, Sleep):
            await asyncio.sleep(action.seconds)
        else:
            link = await self._connected()
            rpc, arguments = _called(action)
            request, self.values = build(rpc, arguments, self.values, link, self.read)
            if isinstance(action, Attach):
                await self._attach(link, request)
            elif self._is_whole(rpc, action):
                await self._move(link, rpc, request)
            else:
                await self._call(link, rpc, request)
                return rpc.name != _LAST
        return True

    def _is_whole(self, rpc: Rpc, action: Call | Attach) -> bool:
        """Whether the command is about a whole stream: it says neither how much nor what."""
        said = {argument.key.lower() if isinstance(argument, Pair) else "data" for argument in action.arguments}
        if not self.values.automatic or "data" in said:
            return False
        return rpc.name == "WriteStdin" or (rpc.name in _READS and "len" not in said)

    async def _connected(self) -> Link:
        if self._link is None:
            self._link = await self.connect()
        return self._link

    # ---------------------------------------------------------------------------------------------------------- calls

    async def _call(self, link: Link, rpc: Rpc, request: Message) -> None:
        if self.log.shows("debug"):
            self.log.debug(f"{rpc.name} request:\n{render.as_yaml(request) or '{}'}")
        begin = time.monotonic()
        await link.before(request)
        done = False
        try:
            answer = await self._send(link, rpc, request)
            done = True
        finally:
            await link.after(request, done=done)
        self._note_terminal(request)
        self.log.info(f"{_title(rpc, request)}: ok, {(time.monotonic() - begin) * 1000:.0f} ms")
        if self.options.as_json:
            await self._write_json(rpc, request, answer)
        elif rpc.name in _READS:
            await self.output.write(answer.data, _READS[rpc.name])
        else:
            await self.output.write(render.as_yaml(answer).encode())

    def _note_terminal(self, request: Any) -> None:
        """Remember which processes have a terminal, by container id and exec id, for `attach`."""
        if isinstance(request, agent_pb2.CreateContainerRequest):
            name, has = (request.container_id, ""), request.OCI.Process.Terminal
        elif isinstance(request, agent_pb2.ExecProcessRequest):
            name, has = (request.container_id, request.exec_id), request.process.Terminal
        else:
            return
        (self._terminals.add if has else self._terminals.discard)(name)

    async def _send(self, link: Link, rpc: Rpc, request: Message) -> Any:
        """The answer to one call.

        Raises:
            CallFailed: the agent's status, or the deadline's.
            Unavailable: the connection is closed.
            InvalidArgument: the request is too large.
            Internal: the answer cannot be read.
        """
        try:
            payload = await link.client.call(
                rpc.service, rpc.name, request.SerializeToString(), timeout=self.options.timeout
            )
            return rpc.response.FromString(payload)
        except ttrpc.StatusError as error:
            raise CallFailed(rpc, error) from error
        except ttrpc.ConnectionClosed as error:
            raise Unavailable(
                f"{rpc.name}: {error}",
                hint=link.last_words() or "the agent has ended, or it does not speak this protocol",
            ) from error
        except ttrpc.MessageTooLarge as error:
            raise InvalidArgument(f"{rpc.name}: {error}") from error
        except DecodeError as error:
            raise Internal(f"{rpc.name}: the answer is not a {rpc.response.DESCRIPTOR.name}") from error

    async def _write_json(self, rpc: Rpc, request: Message, answer: Message) -> None:
        line = {"rpc": rpc.name, **_ids(request), "answer": render.as_data(answer)}
        await self.output.write(render.as_json(line).encode())

    async def _write_error(self, step: Step, error: CallFailed) -> None:
        assert isinstance(step.action, Call | Attach)
        line = {"rpc": _called(step.action)[0].name, "error": {"code": error.status, "message": error.said}}
        await self.output.write(render.as_json(line).encode())

    # -------------------------------------------------------------------------------------------------------- streams

    async def _move(self, link: Link, rpc: Rpc, request: Any) -> None:
        """Move a whole stream."""
        self.log.info(f"{_title(rpc, request)}: to its end")
        if rpc.name in _READS:
            await self._read_all(link, rpc, request)
        else:
            await self._write_all(link, request)

    async def _read_all(self, link: Link, rpc: Rpc, request: Any) -> None:
        while True:
            try:
                answer = await self._send(link, rpc, request)
            except CallFailed as error:
                if error.said.lower() in END_OF_STREAM:
                    return
                raise
            if not answer.data:
                return
            if self.options.as_json:
                await self._write_json(rpc, request, answer)
            else:
                await self.output.write(answer.data, _READS[rpc.name])

    async def _write_all(self, link: Link, request: Any) -> None:
        source = HostSource(0)
        process = {"container_id": request.container_id, "exec_id": request.exec_id}
        try:
            while data := await source.read():
                view = memoryview(data)
                while view:
                    message = agent_pb2.WriteStreamRequest(**process, data=bytes(view[:WRITE_SIZE]))
                    taken = int((await self._send(link, RPCS["WriteStdin"], message)).len)
                    if not 0 < taken <= len(view):
                        raise Unavailable(f"WriteStdin: invalid answer of {taken} bytes")
                    view = view[taken:]
            await self._send(link, RPCS["CloseStdin"], agent_pb2.CloseStdinRequest(**process))
        finally:
            source.close()

    async def _attach(self, link: Link, request: Any) -> None:
        """Connect all three streams, until both outputs have ended; a terminal with the user's, in raw mode."""
        self.log.info(f"attach {_named(request)}".rstrip())
        has_terminal = (request.container_id, request.exec_id) in self._terminals
        reads = ("ReadStdout",) if has_terminal else tuple(_READS)
        if has_terminal and (size := terminal.size(0, 1, 2)):
            process = {"container_id": request.container_id, "exec_id": request.exec_id}
            resize = agent_pb2.TtyWinResizeRequest(**process, row=size.lines, column=size.columns)
            await self._send(link, RPCS["TtyWinResize"], resize)
        with terminal.raw(0) if has_terminal else nullcontext():
            stdin = asyncio.ensure_future(self._feed(link, request))
            outputs = [asyncio.ensure_future(self._read_all(link, RPCS[name], request)) for name in reads]
            try:
                await asyncio.gather(*outputs)
                if stdin.done():
                    stdin.result()
            finally:
                for task in (stdin, *outputs):
                    task.cancel()
                await asyncio.gather(stdin, *outputs, return_exceptions=True)

    async def _feed(self, link: Link, request: Any) -> None:
        try:
            await self._write_all(link, request)
        except CallFailed as error:
            # A process that does not read, or has ended: its output is what counts.
            self.log.debug(error.message)


def _called(action: Call | Attach) -> tuple[Rpc, tuple[Any, ...]]:
    """The RPC that a step's arguments are those of."""
    return (action.rpc, action.arguments) if isinstance(action, Call) else (RPCS["ReadStdout"], action.arguments)


def _ids(request: Message) -> dict[str, str]:
    found = {name: getattr(request, name, "") for name in ("sandbox_id", "container_id", "exec_id")}
    return {name: value for name, value in found.items() if value}


def _named(request: Message) -> str:
    ids = _ids(request)
    if ids.get("exec_id") == ids.get("container_id"):
        ids.pop("exec_id", None)
    return " ".join(f"{name}={value}" for name, value in ids.items())


def _title(rpc: Rpc, request: Message) -> str:
    return f"{rpc.name} {_named(request)}".rstrip()
