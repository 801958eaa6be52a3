"""The debug console: a root shell in the guest for the clients of its channel.

Off unless the kernel command line says `agent.debug_console`. The channel is a raw byte stream to a terminal: the vsock
port of `agent.debug_console_vport` as in Kata, or the virtio-serial port "kata.console" without one.
"""

from __future__ import annotations

import asyncio
import os
import signal

from kata.agent.reaper import ENVIRONMENT, Reaper
from kata.agent.stdio import MAX_READ, Input, Output
from kata.errors import KataError

PORT = "kata.console"

_SHELLS = ("/bin/bash", "/bin/sh")


def address(vport: int) -> str:
    """Where the console listens."""
    return f"vsock://-1:{vport}" if vport else f"virtio-serial://{PORT}"


async def serve(reaper: Reaper, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Run a shell for one connection; the end of either ends the other.

    Args:
        reaper: starts the shell.
        reader: of the connection.
        writer: of the connection; closed at the end.

    Raises:
        OSError: the shell cannot be executed.
    """
    shell = _find_shell()
    master, slave = os.openpty()
    output, keyboard = Output(os.dup(master)), Input(master)
    try:
        pid, exited = reaper.spawn([shell], terminal=os.ttyname(slave), env=ENVIRONMENT | {"TERM": "xterm"})
    except BaseException:
        output.close()
        keyboard.close()
        raise
    finally:
        os.close(slave)
    tasks = {asyncio.create_task(_show(output, writer)), asyncio.create_task(_type(reader, keyboard))}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        output.close()
        keyboard.close()
        if not exited.done():
            os.killpg(pid, signal.SIGKILL)
        writer.close()


def _find_shell() -> str:
    return next(path for path in _SHELLS if os.path.exists(path))


async def _show(output: Output, writer: asyncio.StreamWriter) -> None:
    while data := await output.read(MAX_READ):
        writer.write(data)
        await writer.drain()


async def _type(reader: asyncio.StreamReader, keyboard: Input) -> None:
    try:
        while data := await reader.read(MAX_READ):
            await keyboard.write(data)
    except KataError:
        return  # the shell has ended
