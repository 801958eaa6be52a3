"""A QMP connection to a QEMU that may send events before it has answered the first command.

QEMU sends events to a monitor from the moment it accepts `qmp_capabilities`, which is before it answers that. A VM that
is restored from a template resumes just then. The library's own negotiation takes the first message for the answer; a
negotiation by `execute` tells events and answers apart, and needs nothing but the library's public interface.

References: QEMU's docs/interop/qmp-spec.rst, "Capabilities Negotiation"; qemu.qmp's documentation of
`QMPClient.negotiate`.
"""

from __future__ import annotations

import logging
import socket

from qemu.qmp import QMPClient

#: Characters of a message that are logged: a line of the log has to go through a pipe at once, which is 4 KiB.
_MAX_LOGGED = 2000


class _Transcript(logging.Filter):
    """Of the client's own log, what goes over the wire passes, which is there at level debug, on one line each.

    The rest repeats what exceptions say, and calls a QEMU that dies early a bug.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it passes; its message is cut."""
        if record.msg not in ("--> %s", "<-- %s"):
            return False
        record.msg, record.args = f"qmp {' '.join(record.getMessage().split())[:_MAX_LOGGED]}", None
        return True


_TRANSCRIPT = _Transcript()


async def connect(name: str, channel: socket.socket) -> QMPClient:
    """Connect to a monitor and negotiate.

    Args:
        name: of the VM, for the library's messages.
        channel: the host's end of the connection; the client owns it from here on.

    Returns:
        A client that executes commands. Events are dropped until a listener is registered.

    Raises:
        qemu.qmp.ConnectError: the peer's greeting is not QMP's.
        qemu.qmp.QMPError: QEMU refuses, or ends meanwhile.
    """
    logging.getLogger(f"qemu.qmp.protocol.{name}").addFilter(_TRANSCRIPT)
    client = QMPClient(name)
    client.negotiate = False
    await client.connect(channel)
    try:
        await client.execute("qmp_capabilities")
    except BaseException:
        await disconnect(client)
        raise
    return client


async def disconnect(client: QMPClient) -> None:
    """Close a connection, whatever has become of the peer."""
    try:
        await client.disconnect()
    except Exception:
        # It says again why the connection broke, which whoever waits for an answer has been told.
        return
