"""Waiting for devices by the kernel's messages about them (NETLINK_KOBJECT_UEVENT).

Messages can be lost when there are many, they can have come before anybody listened, and in a network namespace that
containers share they can be forged. The content of sysfs cannot. So a message is only a reason to look there: first of
all, and after messages, however many there are. A flood of them costs no memory, and one look each twentieth of a
second.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import TypeVar

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_MAX_MESSAGE = 8192
#: Between two looks, at least.
_MIN_INTERVAL_S = 0.05
#: Messages that are dropped for one look, at most.
_MAX_BURST = 1000

Found = TypeVar("Found")


async def appears(look: Callable[[], Found | None], timeout: float) -> Found | None:
    """Wait until `look` finds something.

    Args:
        look: looks into sysfs; None for nothing yet.
        timeout: seconds.

    Returns:
        What it found; None if that was nothing in time.

    Raises:
        OSError: the kernel refuses the socket.
    """
    if (found := look()) is not None:
        return found
    loop = asyncio.get_running_loop()
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_KOBJECT_UEVENT) as messages:
        messages.bind((0, _KERNEL_GROUP))
        try:
            async with asyncio.timeout(timeout):
                while (found := look()) is None:
                    looked = loop.time()
                    await _message(loop, messages)
                    await asyncio.sleep(looked + _MIN_INTERVAL_S - loop.time())
                    _drain(messages)
        except TimeoutError:
            # The last message may have been one of those that were lost.
            return look()
    return found


async def _message(loop: asyncio.AbstractEventLoop, messages: socket.socket) -> None:
    try:
        await loop.sock_recv(messages, _MAX_MESSAGE)
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise


def _drain(messages: socket.socket) -> None:
    """Drop pending messages: one look is enough for all of them.

    Raises:
        OSError: the socket fails. ENOBUFS is not among its errors: lost messages are dropped ones, too.
    """
    for _ in range(_MAX_BURST):
        try:
            messages.recv(_MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
