"""Logs of guest console and VMM output: bounded on disk, safe on a terminal.

The guest is hostile: it may write endlessly, and it may write control sequences. Not here: what the lines mean.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

#: Bytes kept of one log.
MAX_LOG_BYTES = 256 * 1024
_CHUNK = 64 * 1024
#: Characters shown of one line.
_MAX_LINE = 500
#: ECMA-48 control sequences and strings, removed whole, so that their printable part does not stay.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_][^\x1b]*\x1b\\|[ -/]*[0-~])")


def printable(text: str) -> str:
    """`text` without anything that a terminal interprets, but for line feeds and tabs."""
    kept = (character for character in _ESCAPES.sub("", text) if character in "\n\t" or character.isprintable())
    return "".join(kept)


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a `RingFile`, safe to show, each truncated to 500 characters; "" if there are none."""
    kept = [line[:_MAX_LINE] for line in text(path, MAX_LOG_BYTES).split("\n") if line.strip()]
    return "\n".join(kept[-lines:])


def text(path: Path, limit: int) -> str:
    """The last `limit` bytes of a `RingFile`, safe to show; "" if there are none."""
    data = b""
    for part in (_older(path), path):
        try:
            data += part.read_bytes()
        except OSError:
            continue
    return printable(data[-limit:].decode(errors="replace"))


class Follower:
    """Reads a `RingFile` that another one writes, from near its end, and goes on as it grows.

    What is overwritten before it was read is left out.

    Args:
        path: the log file.
        limit: bytes of what is there already that are read.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._fd = self._open()
        self._rest = b""
        if self._fd >= 0:
            os.lseek(self._fd, max(0, os.fstat(self._fd).st_size - limit), os.SEEK_SET)

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return -1

    def read(self) -> str:
        """What has been written since the last call, safe to show: whole lines, unless one is not ended for a while.

        Raises:
            OSError: it cannot be read.
        """
        data = os.read(self._fd, _CHUNK) if self._fd >= 0 else b""
        if not data and self._is_replaced():
            self.close()
            self._fd = self._open()
            data = os.read(self._fd, _CHUNK) if self._fd >= 0 else b""
        # A control sequence must not be cut in two, or its end would be shown.
        head, newline, rest = (self._rest + data).rpartition(b"\n")
        if not data or len(rest) > _CHUNK:
            head, newline, rest = self._rest + data, b"", b""
        self._rest = rest
        return printable((head + newline).decode(errors="replace"))

    def _is_replaced(self) -> bool:
        try:
            return self._fd < 0 or os.stat(self._path).st_ino != os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _older(path: Path) -> Path:
    return path.with_name(path.name + ".1")


class RingFile:
    """A log of bounded size: between half of `limit` and `limit` bytes of its end are kept.

    Two files: `path` grows to half the limit, is then renamed to `path` + ".1", and started again.

    Args:
        path: the log file; an existing one is overwritten.
        limit: bytes.

    Raises:
        OSError: the file cannot be created.
    """

    def __init__(self, path: Path, limit: int = MAX_LOG_BYTES) -> None:
        self.path = path
        self._older = _older(path)
        self._half = max(1, limit // 2)
        self._older.unlink(missing_ok=True)
        self._fd = self._open()
        self._size = 0

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, data: bytes) -> None:
        """Append. What cannot be written is dropped: a full disk must not stop a guest."""
        try:
            view = memoryview(data)[-2 * self._half :]
            while view:
                if self._size >= self._half:
                    self._rotate()
                written = os.write(self._fd, view[: self._half - self._size])
                self._size += written
                view = view[written:]
        except OSError:
            return

    def _rotate(self) -> None:
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
        """As `tail` of its path."""
        return tail(self.path, lines)


class Pump:
    """Copies a descriptor into a ring file, until its end.

    Args:
        fd: of a pipe or stream socket; owned from here on.
        ring: stays the caller's.

    Raises:
        RuntimeError: no event loop runs.
    """

    def __init__(self, fd: int, ring: RingFile) -> None:
        self._fd = fd
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._readable)

    def _readable(self) -> None:
        # One chunk for each iteration of the event loop: a guest that floods its console does not starve others.
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
        """Wait for the end of the data, for `timeout` seconds at most."""
        try:
            async with asyncio.timeout(timeout):
                await self._ended.wait()
        except TimeoutError:
            return

    def close(self) -> None:
        """Stop copying and close the descriptor. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._ended.set()
