"""`kata top` on a terminal: keys, size and figures to a picture, again and again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace

from rich.console import Console
from rich.live import Live
from rich.table import Table

from kata.cli.observe import Observer
from kata.cli.render import ExitCode, signalled
from kata.cli.terminal import keyboard
from kata.cli.top import Choice, keys, lines, plain, room, screen
from kata.cli.usage import View

#: Seconds between the first two looks.
_FIRST_S = 1.0
#: Bytes that are read of a keyboard at once.
_MAX_KEYS = 64


async def run(observer: Observer, interval: float) -> int:
    """Show what an observer sees, every so many seconds; returns the exit code."""
    # The terminal's size counts, which may change; these stay what they were.
    os.environ.pop("COLUMNS", None)
    os.environ.pop("LINES", None)
    console = Console()
    views = await observer.look()
    if not console.is_terminal or console.is_dumb_terminal:
        await asyncio.sleep(min(_FIRST_S, interval))
        sys.stdout.write(plain(await observer.look(), time.time()))
        return ExitCode.OK
    return await _Top(observer, console, interval).run(views)


class _Top:
    """The live picture.

    Args:
        observer: looks at the sandboxes.
        console: the terminal.
        interval: seconds between two looks.
    """

    def __init__(self, observer: Observer, console: Console, interval: float) -> None:
        self._observer = observer
        self._console = console
        self._interval = interval
        self._choice = Choice()
        self._views: list[View] = []
        self._changed = asyncio.Event()
        self._ended_by = 0

    async def run(self, views: list[View]) -> int:
        """Until a key or a signal ends it; returns the exit code. The terminal is as before then."""
        self._views = views
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGWINCH, self._changed.set)
        looking = asyncio.create_task(self._look())
        try:
            with keyboard(0) as has_keys, Live(console=self._console, screen=True, auto_refresh=False) as live:
                if has_keys:
                    loop.add_reader(0, self._type)
                try:
                    while not self._choice.ends:
                        self._changed.clear()
                        live.update(self._picture(), refresh=True)
                        await self._changed.wait()
                        if looking.done():
                            looking.result()
                finally:
                    if has_keys:
                        loop.remove_reader(0)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        return signalled(self._ended_by) if self._ended_by else ExitCode.OK

    def _picture(self) -> Table:
        size = self._console.size
        return screen(self._views, self._choice, size.height, size.width, time.time())

    async def _look(self) -> None:
        try:
            pause = min(_FIRST_S, self._interval)  # with one look there are no rates
            while True:
                await asyncio.sleep(pause)
                pause = self._interval
                self._views = await self._observer.look()
                self._changed.set()
        finally:
            self._changed.set()

    def _type(self) -> None:
        try:
            data = os.read(0, _MAX_KEYS)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(signal.SIGHUP)  # the terminal is gone
        for key in keys(data.decode(errors="replace")):
            count = len(lines(self._views, self._choice, time.time()))
            self._choice = self._choice.after(key, count, room(self._console.size.height))
        self._changed.set()

    def _end(self, number: int) -> None:
        self._ended_by = number
        self._choice = replace(self._choice, ends=True)
        self._changed.set()
