"""The greeting of a QEMU in which something happens meanwhile."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from qemu.qmp import ConnectError

from kata.runtime.hypervisor.qemu.qmp import EarlyEventsClient

pytestmark = pytest.mark.timeout(20)

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}
RESUME = {"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}}


async def qemu(sock: socket.socket, *answers: object) -> None:
    """Say the greeting, then `answers` to the first command, then a return to each command."""
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.write(json.dumps(GREETING).encode() + b"\r\n")
    await reader.read(1 << 16)  # a command has no end of line
    for answer in answers:
        writer.write(json.dumps(answer).encode() + b"\r\n")
    while line := await reader.read(1 << 16):
        writer.write(json.dumps({"return": {}, "id": json.loads(line)["id"]}).encode() + b"\r\n")
    writer.close()


async def test_events_before_the_answer_are_passed_over() -> None:
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(qemu(theirs, RESUME, RESUME, {"return": {}}))
    monitor = EarlyEventsClient("m")
    await monitor.connect(ours)
    assert await monitor.execute("query-status") == {}
    await monitor.disconnect()
    await serving


async def test_a_refusal_still_is_one() -> None:
    ours, theirs = socket.socketpair()
    error = {"error": {"class": "GenericError", "desc": "no"}}
    serving = asyncio.create_task(qemu(theirs, RESUME, error))
    with pytest.raises(ConnectError):
        await EarlyEventsClient("m").connect(ours)
    await serving
