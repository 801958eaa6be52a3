"""Files over the agent's socket, with agents that fail, lie, or are another version."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from google.protobuf import empty_pb2

from kata import ttrpc
from kata.archive.extract import extract
from kata.archive.pack import Totals
from kata.cli import agent_files as module
from kata.cli.agent_files import AgentFiles
from kata.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from kata.protocols import agent_pb2, bound, files
from kata.ttrpc.typed import handlers

LIMIT_S = 30


class Guest:
    """An agent whose program says and takes what the test wants."""

    def __init__(self) -> None:
        self.output: list[bytes] = []
        self.said = files.Report().to_json()
        self.status = 0
        self.endless = b""
        self.taken = b""
        self.takes = 1 << 40
        self.refusal: ttrpc.StatusError | None = None
        self.metadata: dict[str, str] = {}
        self.args: list[str] = []
        self._input_ended = asyncio.Event()

    async def exec_process(self, request: Any, ctx: ttrpc.CallContext) -> empty_pb2.Empty:
        if self.refusal:
            raise self.refusal
        self.metadata, self.args = dict(ctx.metadata), list(request.process.Args)
        return empty_pb2.Empty()

    async def read_stdout(self, request: Any, ctx: object) -> agent_pb2.ReadStreamResponse:
        data = self.output.pop(0) if self.output else self.endless
        return agent_pb2.ReadStreamResponse(data=data)

    async def read_stderr(self, request: Any, ctx: object) -> agent_pb2.ReadStreamResponse:
        if self.endless:
            await asyncio.Event().wait()
        data, self.said = self.said, b""
        return agent_pb2.ReadStreamResponse(data=data)

    async def write_stdin(self, request: Any, ctx: object) -> agent_pb2.WriteStreamResponse:
        self.taken += request.data
        if len(self.taken) > self.takes:
            self._input_ended.set()
            raise ttrpc.StatusError(ttrpc.Code.FAILED_PRECONDITION, "the process has closed its standard input")
        return agent_pb2.WriteStreamResponse(len=len(request.data))

    async def close_stdin(self, request: Any, ctx: object) -> empty_pb2.Empty:
        self._input_ended.set()
        return empty_pb2.Empty()

    async def wait_process(self, request: Any, ctx: object) -> agent_pb2.WaitProcessResponse:
        if self.endless:
            await asyncio.Event().wait()
        await self._input_ended.wait()
        return agent_pb2.WaitProcessResponse(status=self.status)

    def fail(self, error: Any, status: int = 1) -> None:
        self.said, self.status = files.Report(error).to_json(), status


@pytest.fixture
def guest() -> Guest:
    return Guest()


@pytest.fixture
async def agent_files(guest: Guest, tmp_path: Path) -> AsyncIterator[AgentFiles]:
    service = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
    async with ttrpc.Server(handlers(service, guest)) as server:
        await server.serve_unix(str(tmp_path / "agent"))
        async with await ttrpc.Client.connect_unix(str(tmp_path / "agent")) as client, asyncio.timeout(LIMIT_S):
            yield AgentFiles(client)


def archive(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        made.addfile(info, io.BytesIO(data))
    return out.getvalue()


def taker(directory: Path, only: str) -> Any:
    def take(stream: BinaryIO) -> Totals:
        fd = os.open(directory, os.O_RDONLY)
        try:
            return extract(stream, fd, "test", owner=(os.getuid(), os.getgid()), only=only)
        finally:
            os.close(fd)

    return take


async def test_out_of_a_container(guest: Guest, agent_files: AgentFiles, tmp_path: Path) -> None:
    content = archive("a", b"hello" * 1000)
    guest.output = [content[:700], content[700:]]
    report, totals = await agent_files.get_through("box", "/x", "a", taker(tmp_path, "a"))
    assert (report, totals.entries) == (files.Report(), 1)
    assert (tmp_path / "a").read_bytes() == b"hello" * 1000
    assert guest.metadata[bound.KEY] == bound.CONNECTION
    assert guest.args == files.get_arguments("box", "/x", "a", follow=False)


@pytest.mark.parametrize("to", ["/dev/full", "pipe"])
async def test_an_archive_that_cannot_be_written(guest: Guest, agent_files: AgentFiles, to: str) -> None:
    """The rest is not waited for: the guest would send for ever."""
    guest.output, guest.endless = [archive("a", b"x" * 5000)], b"y" * 100_000
    reading, fd = os.pipe() if to == "pipe" else (os.open("/dev/null", os.O_RDONLY), os.open(to, os.O_WRONLY))
    os.close(reading)
    try:
        with pytest.raises(OSError, match="Broken pipe" if to == "pipe" else "No space left"):
            await agent_files.get_to(fd, "box", "/x", "a")
    finally:
        os.close(fd)


async def test_an_archive_of_something_else(guest: Guest, agent_files: AgentFiles, tmp_path: Path) -> None:
    guest.output, guest.endless = [archive("../.bashrc", b"x")], b"y" * 100_000
    begun = time.monotonic()
    with pytest.raises(InvalidArgument, match="leads out of"):
        await agent_files.get_through("box", "/x", "a", taker(tmp_path, "a"))
    assert time.monotonic() - begun < LIMIT_S / 2, "although the guest goes on for ever"
    assert os.listdir(tmp_path) == ["agent"]


@pytest.mark.parametrize("sent", [b"", archive("a", b"x" * 5000)[:1000]], ids=["nothing", "a part"])
async def test_the_guest_s_reason_counts(guest: Guest, agent_files: AgentFiles, tmp_path: Path, sent: bytes) -> None:
    guest.output = [sent] if sent else []
    guest.fail(FailedPrecondition("cannot read a: input/output error"))
    with pytest.raises(FailedPrecondition, match="input/output error"):
        await agent_files.get_through("box", "/x", "a", taker(tmp_path, "a"))


async def test_a_program_that_is_killed(guest: Guest, agent_files: AgentFiles, tmp_path: Path) -> None:
    guest.said, guest.status = b"", 137
    with pytest.raises(Unavailable, match="with status 137"):
        await agent_files.get_through("box", "/x", "a", taker(tmp_path, "a"))


async def test_into_a_container(guest: Guest, agent_files: AgentFiles) -> None:
    def give(stream: BinaryIO) -> int:
        return stream.write(b"z" * (3 << 20))

    report, written = await agent_files.put_from("box", "/x", give, owner=(0, 0))
    assert (report, written, guest.taken) == (files.Report(), 3 << 20, b"z" * (3 << 20))
    assert guest.args == files.put_arguments("box", "/x", (0, 0))


async def test_a_guest_that_takes_no_more(guest: Guest, agent_files: AgentFiles) -> None:
    guest.takes = 1 << 20
    guest.fail(ResourceExhausted("cannot write 'a': no space left on device"))

    def give(stream: BinaryIO) -> None:
        while True:
            stream.write(bytes(1 << 20))

    with pytest.raises(ResourceExhausted, match="no space left"):
        await agent_files.put_from("box", "/x", give, owner=None)


async def test_this_side_s_reason_counts_when_it_sends(guest: Guest, agent_files: AgentFiles) -> None:
    guest.fail(InvalidArgument("broken tar: cut off"))

    def give(stream: BinaryIO) -> None:
        stream.write(b"x" * 1000)
        raise FailedPrecondition("cannot read b: permission denied")

    with pytest.raises(FailedPrecondition, match="cannot read b"):
        await agent_files.put_from("box", "/x", give, owner=None)


async def test_an_agent_that_knows_no_files(guest: Guest, agent_files: AgentFiles) -> None:
    guest.refusal = ttrpc.StatusError(ttrpc.Code.NOT_FOUND, "container  does not exist")
    with pytest.raises(Unimplemented, match="another version"):
        await agent_files.stat("box", "/x")
    guest.refusal = ttrpc.StatusError(ttrpc.Code.NOT_FOUND, "container box does not exist")
    with pytest.raises(NotFound, match="container box does not exist"):
        await agent_files.stat("box", "/x")


async def test_a_small_file(guest: Guest, agent_files: AgentFiles) -> None:
    guest.output = [archive("file", b"root:x:0:0\n")]
    assert await agent_files.read("box", "/etc/passwd", 100) == b"root:x:0:0\n"


async def test_a_file_that_is_too_large(guest: Guest, agent_files: AgentFiles) -> None:
    guest.output = [archive("file", b"x" * 200_000)]
    with pytest.raises(ResourceExhausted, match="larger than 100 bytes"):
        await agent_files.read("box", "/etc/passwd", 100)


async def test_an_answer_without_an_end(guest: Guest, agent_files: AgentFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SOON_S", 0.3)
    guest.endless = b"x" * 1000
    with pytest.raises(DeadlineExceeded):
        await agent_files.stat("box", "/x")


@pytest.mark.parametrize("told", [b"", b"[]\n", b'{"kind": 5}\n', b'{"kind": "' + b"x" * 100_000 + b'"}\n'])
async def test_a_hostile_answer(guest: Guest, agent_files: AgentFiles, told: bytes) -> None:
    guest.output = [told] if told else []
    try:
        found = await agent_files.stat("box", "/x")
    except Unavailable:
        return
    assert len(found.kind) < 20
