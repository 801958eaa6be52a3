"""Sandboxes that only answer on their management sockets, as real ones do, in a process of its own.

    python -m benchmarks.fleet DIRECTORY COUNT

One of them never answers and one is dead. It says "ready", and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

from kata.errors import Internal
from tests.support.fakesandboxes import FakeSandbox, metrics_text

_NEVER_S = 1e6


@contextmanager
def fleet(directory: Path, count: int) -> Iterator[None]:
    """So many sandboxes in a directory, until the end of the block. Raises Internal: they did not begin."""
    command = [sys.executable, "-m", "benchmarks.fleet", str(directory), str(count)]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout
        assert process.stdin
        if process.stdout.readline() != "ready\n":
            raise Internal("the sandboxes that only answer did not begin")
        yield
        process.stdin.close()


async def serve(directory: Path, count: int) -> None:
    """Serve until the end of standard input."""
    text = metrics_text()
    async with AsyncExitStack() as stack:
        sandboxes = [
            await stack.enter_async_context(FakeSandbox(directory, f"box{number}@k8s.io", metrics=text))
            for number in range(count)
        ]
        sandboxes[0].delay = _NEVER_S
        await sandboxes[1].close(leave=True)
        print("ready", flush=True)  # noqa: T201
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
