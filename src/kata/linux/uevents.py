"""The kernel's messages about devices (NETLINK_KOBJECT_UEVENT), used as what they are good for: to look again.

A message can be lost when there are many, one can have come before anybody listened, and in a network namespace that
containers share they can be forged. What is in sysfs cannot. So whoever waits looks there first and after messages,
however many of them there are: a storm costs no memory, and one look each twentieth of a second.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import TypeVar

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_SIZE = 8192
#: Seconds between two looks at least, and messages that are read away for one look at most.
_PAUSE_S = 0.05
_BURST = 1000

Found = TypeVar("Found")


async def appears(look: Callable[[], Found | None], timeout: float) -> Found | None:
    """What `look` finds, as soon as it finds something; None if that is nothing within `timeout` seconds."""
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
                    await asyncio.sleep(looked + _PAUSE_S - loop.time())
                    _drain(messages)
        except TimeoutError:
            # The last message may have been one of those that were lost.
            return look()
    return found


async def _message(loop: asyncio.AbstractEventLoop, messages: socket.socket) -> None:
    try:
        await loop.sock_recv(messages, _SIZE)
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise


def _drain(messages: socket.socket) -> None:
    """One look answers all the messages that have come by now."""
    for _ in range(_BURST):
        try:
            messages.recv(_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
