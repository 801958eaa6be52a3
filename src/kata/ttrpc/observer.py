"""Watching calls, for traces and metrics: what clients and servers tell an observer of each.

    def observe(service: str, method: str, payload: bytes, metadata: dict[str, str]) -> Done | None:
        begin = time.monotonic()
        return lambda code, text: histogram.observe(method, code, time.monotonic() - begin)

    client.observers.append(observe)
    server.observers.append(observe)

Without an observer a call costs one `if` more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from kata.ttrpc.errors import Code, ConnectionClosed, MessageTooLarge, StatusError

#: Called when a call has ended, with code and text of its status, in the task that has made or answered it.
Done = Callable[[int, str], None]
#: Called when a call begins, in the task that makes or answers it: with service, method, the serialized request (of a
#: streaming call, its first message) and the metadata, which a client's observer may add to. Returns None if the end of
#: the call is of no interest. Neither may raise.
Observer = Callable[[str, str, bytes, dict[str, str]], Done | None]


def begin(
    observers: Sequence[Observer], service: str, method: str, payload: bytes, metadata: dict[str, str]
) -> list[Done]:
    """Tell that a call begins; returns whom to tell that it has ended."""
    told = [observe(service, method, payload, metadata) for observe in observers]
    return [done for done in told if done is not None]


@contextmanager
def observed(
    observers: Sequence[Observer], service: str, method: str, payload: bytes, metadata: dict[str, str]
) -> Iterator[None]:
    """Tell begin and end of the call that a client makes in the body."""
    told = begin(observers, service, method, payload, metadata)
    status: tuple[int, str] = (Code.OK, "")
    try:
        yield
    except BaseException as error:
        status = _status(error)
        raise
    finally:
        for done in told:
            done(*status)


def _status(error: BaseException) -> tuple[int, str]:
    match error:
        case StatusError():
            return error.code, error.message
        case ConnectionClosed():
            return Code.UNAVAILABLE, str(error)
        case MessageTooLarge():
            return Code.RESOURCE_EXHAUSTED, str(error)
        case asyncio.CancelledError() | GeneratorExit():
            return Code.CANCELLED, "the call was cancelled"
    return Code.UNKNOWN, f"{type(error).__name__}: {error}"
