"""What a client watches as it happens: events, as server-sent events, and the guest's console."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from kata.loop.off import off_loop
from kata.management.server import TEXT, Request, Response
from kata.runtime.hypervisor.console import Follower, text
from kata.runtime.sandbox.events import Event, Events

#: Events that wait for a client; one that is so far behind is dropped.
MAX_QUEUE = 256
#: Seconds after which a client that has been told nothing gets a comment, so that either side finds the other gone.
_KEEP_ALIVE_S = 15.0
#: Bytes of the console that are shown.
_CONSOLE_BYTES = 64 << 10
#: Seconds between two looks at the console's file.
_LOOK_INTERVAL_S = 0.3


async def events(events: Events, request: Request) -> Response:
    """GET /events: what happens from now on, an event a line pair (HTML standard, "Server-sent events")."""
    queue: asyncio.Queue[Event | None] = asyncio.Queue()

    def put(event: Event) -> None:
        if queue.qsize() < MAX_QUEUE:
            queue.put_nowait(event)
        elif queue.qsize() == MAX_QUEUE:
            queue.put_nowait(None)

    # Before the answer begins: a client that has it misses nothing.
    forget = events.listen(put)
    return Response(_told(queue, forget), "text/event-stream")


async def _told(queue: asyncio.Queue[Event | None], forget: Callable[[], None]) -> AsyncGenerator[bytes, None]:
    try:
        while True:
            try:
                async with asyncio.timeout(_KEEP_ALIVE_S):
                    event = await queue.get()
            except TimeoutError:
                yield b":\n\n"
                continue
            if event is None:
                return
            yield b"data: " + json.dumps(event.describe()).encode() + b"\n\n"
    finally:
        forget()


async def console(path: Path, request: Request) -> Response:
    """GET /console: the end of what the guest has written, and with `?follow=1` what it writes from then on."""
    if request.query.get("follow", "0") in ("", "0"):
        return Response((await off_loop(text, path, _CONSOLE_BYTES)).encode(), TEXT)
    return Response(_followed(path), TEXT)


async def _followed(path: Path) -> AsyncGenerator[bytes, None]:
    follower = Follower(path, _CONSOLE_BYTES)
    try:
        while True:
            said = await off_loop(follower.read)
            if said:
                yield said.encode()
            else:
                await asyncio.sleep(_LOOK_INTERVAL_S)
    finally:
        follower.close()
