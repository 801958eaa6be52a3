"""What a guest or its monitor says, kept: bounded on disk, safe on a terminal.

The guest is hostile: it may write for ever, and it may write what a terminal obeys. Not here: what lines mean.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

#: Bytes kept of one log.
DEFAULT_LIMIT = 256 * 1024
_CHUNK = 64 * 1024
#: Characters shown of one line.
_LINE_LIMIT = 500
#: ECMA-48 control sequences and strings, so that their printable remains do not stay as litter.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_][^\x1b]*\x1b\\|[ -/]*[0-~])")


def printable(text: str) -> str:
    """`text` without anything that a terminal would act on; lines stay lines."""
    kept = (character for character in _ESCAPES.sub("", text) if character in "\n\t" or character.isprintable())
    return "".join(kept)


class RingFile:
    """A log of which the last `limit` bytes, at most, and the last half of that, at least, are kept.

    Two files: `path` grows to half the limit, then becomes `path` + ".1", replacing the one before.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, limit: int = DEFAULT_LIMIT) -> None:
        self.path = path
        self._older = path.with_name(path.name + ".1")
        self._half = max(1, limit // 2)
        self._older.unlink(missing_ok=True)
        self._fd = self._open()
        self._size = 0

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, data: bytes) -> None:
        """Append. What the disk does not take is lost: a full disk must not stop a guest."""
        try:
            view = memoryview(data)[-2 * self._half :]
            while view:
                if self._size >= self._half:
                    self._turn()
                written = os.write(self._fd, view[: self._half - self._size])
                self._size += written
                view = view[written:]
        except OSError:
            return

    def _turn(self) -> None:
        os.replace(self.path, self._older)
        os.close(self._fd)
        self._fd = -1
        self._fd = self._open()
        self._size = 0

    def close(self) -> None:
        """Close the file, which stays. Idempotent; `tail` still works."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def tail(self, lines: int = 20) -> str:
        """The last lines, safe to show, each cut to a sane length; "" if there are none."""
        data = b""
        for path in (self._older, self.path):
            try:
                data += path.read_bytes()
            except OSError:
                continue
        text = printable(data.decode(errors="replace"))
        kept = [line[:_LINE_LIMIT] for line in text.split("\n") if line.strip()]
        return "\n".join(kept[-lines:])


class Pump:
    """Moves what a descriptor gives into a ring file, until its end.

    Owns the descriptor, which has to be a pipe or a stream socket. Made in a running event loop.
    """

    def __init__(self, fd: int, ring: RingFile) -> None:
        self._fd = fd
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._readable)

    def _readable(self) -> None:
        # One chunk a turn: a guest that floods its console gets no more of this process than others do.
        try:
            data = os.read(self._fd, _CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._ring.write(data)
        else:
            self.close()

    async def ended(self, timeout: float) -> None:
        """Wait for the end of the data, or of the time."""
        try:
            async with asyncio.timeout(timeout):
                await self._ended.wait()
        except TimeoutError:
            return

    def close(self) -> None:
        """Stop and close the descriptor. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._ended.set()
