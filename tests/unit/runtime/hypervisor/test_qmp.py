"""The QMP connection to a QEMU in which something happens meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Mapping

import pytest
from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError

from kata.runtime.hypervisor.qemu import qmp

pytestmark = pytest.mark.timeout(20)

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": ["oob"]}}
RESUME = {"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}}
DONE: Mapping[str, object] = {"return": {}}
REFUSED = {"error": {"class": "GenericError", "desc": "no"}}


async def qemu(sock: socket.socket, *messages: Mapping[str, object], greeting: object = GREETING) -> list[str]:
    """Greet, send `messages` upon the first command, answer each later command; returns the commands.

    An answer is sent with the command's id.
    """
    reader, writer = await asyncio.open_connection(sock=sock)
    commands: list[str] = []

    def send(message: object) -> None:
        writer.write(json.dumps(message).encode() + b"\r\n")

    async def receive() -> dict[str, str]:
        # A command has no end of line, and the client sends none before the last is answered.
        data = await reader.read(1 << 16)
        command = json.loads(data) if data else {}
        if command:
            commands.append(command["execute"])
        return dict(command)

    try:
        send(greeting)
        first = await receive()
        for message in messages if first else ():
            send(message if "event" in message else {**message, "id": first["id"]})
        while messages and (command := await receive()):
            send({**DONE, "id": command["id"]})
    finally:
        writer.close()
        await writer.wait_closed()
    return commands


async def test_events_before_the_first_answer_are_no_answers() -> None:
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(qemu(theirs, RESUME, RESUME, DONE))
    client = await qmp.connect("m", ours)
    assert await client.execute("query-status") == {}
    await qmp.disconnect(client)
    assert await serving == ["qmp_capabilities", "query-status"], "negotiated once, by us"


async def test_a_refusal_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(qemu(theirs, RESUME, REFUSED))
    with pytest.raises(ExecuteError, match="no"):
        await qmp.connect("m", ours)
    await serving


async def test_a_peer_that_does_not_speak_qmp() -> None:
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(qemu(theirs, greeting={"hello": "world"}))
    with pytest.raises(ConnectError):
        await qmp.connect("m", ours)
    await serving


async def test_a_peer_that_ends_instead_of_answering() -> None:
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(qemu(theirs))
    with pytest.raises(ExecInterruptedError):
        await qmp.connect("m", ours)
    await serving


async def test_at_level_debug_there_is_a_transcript_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for _ in range(2):
        ours, theirs = socket.socketpair()
        serving = asyncio.create_task(qemu(theirs, DONE))
        client = await qmp.connect("m", ours)
        await client.execute("query-long", {"text": "x" * 5000})
        await qmp.disconnect(client)
        await serving
    said = [record.getMessage() for record in caplog.records if record.name.startswith("qemu.qmp")]
    once = said[: len(said) // 2]
    assert [line[:8] for line in once] == ["qmp <-- ", "qmp --> ", "qmp <-- ", "qmp --> ", "qmp <-- "]
    assert '"execute": "query-long"' in once[3]
    assert len(said) == 10, "as many for a VM of the same name"
    assert all("\n" not in line and len(line) <= 2004 for line in said)


async def test_otherwise_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(qemu(theirs, greeting={"hello": "world"}))
    with pytest.raises(ConnectError):
        await qmp.connect("m", ours)
    await serving
    assert not [record for record in caplog.records if record.name.startswith("qemu.qmp")]
