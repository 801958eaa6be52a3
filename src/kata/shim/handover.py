"""Handing a sandbox over to a process in standby: the message, and the side of `start`.

Each process in standby listens on a socket in its state directory and answers READY to whoever connects; only then the
message is sent, with two descriptors: the shim's socket and the ledger. ACCEPTED makes it the sandbox's shim. Before
READY either side may leave; after the message only an answer counts, so that a sandbox never gets two shims.

`start` imports this file, so it imports nothing that costs time.
"""

from __future__ import annotations

import _socket
import os
import sys

from kata.errors import Unavailable
from kata.sandbox.ledger import STATE_ROOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

#: Directories of processes in standby, and the socket in each.
PREFIX = "standby-"
SOCKET = "start"
READY = b"ready"
ACCEPTED = b"accepted"
#: Of a message, in bytes: what a socket takes at once. A larger environment goes without standby.
MESSAGE_MAX = 64 * 1024

#: Seconds for a process that only waits for this to say that it is ready, and to take what it was sent.
_READY_S = 0.05
_ACCEPTED_S = 2.0
_FIELDS = 7


class Handover:
    """What `start` knows, for another process to be the daemon in its place.

    Attributes:
        environment: of `start`, and so of the daemon.
    """

    def __init__(
        self,
        *,
        sandbox_id: str,
        namespace: str,
        events_address: str,
        options: bytes,
        debug: bool,
        bundle: str,
        begun: float,
        environment: Mapping[str, str],
    ) -> None:
        self.sandbox_id = sandbox_id
        self.namespace = namespace
        self.events_address = events_address
        self.options = options
        self.debug = debug
        self.bundle = bundle
        self.begun = begun
        self.environment = environment

    def encode(self) -> bytes:
        """The message: fields that end with a zero byte, which none of them can contain."""
        fields = [
            self.sandbox_id,
            self.namespace,
            self.events_address,
            self.options.hex(),
            "debug" if self.debug else "",
            self.bundle,
            repr(self.begun),
            *(f"{name}={value}" for name, value in self.environment.items()),
        ]
        return b"".join(os.fsencode(field) + b"\0" for field in fields)

    @classmethod
    def decode(cls, data: bytes) -> Handover:
        """The reverse of `encode`.

        Raises:
            ValueError: it is not a whole message.
        """
        if not data.endswith(b"\0"):
            raise ValueError("the message is cut off")
        fields = [os.fsdecode(field) for field in data[:-1].split(b"\0")]
        if len(fields) < _FIELDS:
            raise ValueError(f"the message has {len(fields)} fields")
        variables = [field.partition("=") for field in fields[_FIELDS:]]
        return cls(
            sandbox_id=fields[0],
            namespace=fields[1],
            events_address=fields[2],
            options=bytes.fromhex(fields[3]),
            debug=fields[4] == "debug",
            bundle=fields[5],
            begun=float(fields[6]),
            environment={name: value for name, _, value in variables},
        )


def hand_over(handover: Handover, descriptors: tuple[int, int], state_root: str = STATE_ROOT) -> int:
    """Find a process in standby and make it the sandbox's shim; returns its id, or 0 if there is none.

    Args:
        descriptors: the shim's listening socket and the locked ledger; they stay the caller's.

    Raises:
        Unavailable: a process was sent the sandbox and does not say that it has it.
    """
    message = handover.encode()
    if len(message) > MESSAGE_MAX:
        return 0
    try:
        names = os.listdir(state_root)
    except FileNotFoundError:
        return 0
    for name in names:
        if name.startswith(PREFIX):
            pid = _offer(os.path.join(state_root, name, SOCKET), message, descriptors)
            if pid:
                return pid
    return 0


def _offer(path: str, message: bytes, descriptors: tuple[int, int]) -> int:
    peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        peer.settimeout(_READY_S)
        try:
            peer.connect(path)
            if peer.recv(len(READY)) != READY:
                return 0
            pid = int.from_bytes(peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)[:4], sys.byteorder)
            rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in descriptors)
            peer.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        except OSError:
            return 0  # not there, not ready, or another start was quicker
        peer.settimeout(_ACCEPTED_S)
        try:
            answer = peer.recv(len(ACCEPTED))
        except OSError as error:
            raise Unavailable(f"process {pid} in standby was given the sandbox and does not answer: {error}") from None
        # An end without an answer is a refusal: nothing was taken.
        return pid if answer == ACCEPTED else 0
    finally:
        peer.close()
