"""The QMP client, made safe for a QEMU in which something happens while it is greeted.

A machine goes on from its template while the shim still connects. QEMU sends events to a monitor from the moment it
takes `qmp_capabilities`, which is before it has answered it, and the client takes what comes first for the answer.
"""

from __future__ import annotations

from qemu.qmp import QMPClient
from qemu.qmp.message import Message


class EarlyEventsClient(QMPClient):
    """A QMPClient that passes over events which come before the answer to its greeting; nobody waits for any yet."""

    _greets = False

    async def _negotiate(self) -> None:
        self._greets = True
        try:
            await super()._negotiate()
        finally:
            self._greets = False

    async def _recv(self) -> Message:
        message = await super()._recv()
        while self._greets and "event" in message:
            message = await super()._recv()
        return message
