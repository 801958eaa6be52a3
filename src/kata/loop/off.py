"""Calls that may block, made off the event loop.

A file system may take minutes: one that walks a million files, one that flushes, one whose server is away. The loop has
others to serve meanwhile, and a health check to answer.
"""

from __future__ import annotations

import asyncio

# asyncio imports it with the first thread; an image without it has to fail when it is built.
import concurrent.futures.thread  # noqa: F401
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

_T = TypeVar("_T")


async def off_loop(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call a function in a thread and return its result, or raise what it raises.

    A thread cannot be stopped. So if the caller is cancelled, this ends when the function does: whoever undoes what it
    has done must not be overtaken by it.

    Args:
        function: must not touch what belongs to the loop.
        arguments: of the call.
    """
    call = asyncio.get_running_loop().run_in_executor(None, partial(function, *arguments))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        while not call.done():
            try:
                await asyncio.wait([call])
            except asyncio.CancelledError:
                continue
        call.exception()  # told to nobody
        raise
