"""Hand a sandbox over to a process in standby: the side of `start`.

Each process in standby listens on a socket in its state directory and answers READY to a connection. Only then is it
sent the parameters and two descriptors: the shim's socket and the ledger. With ACCEPTED it is the sandbox's shim.
Before READY either side may leave; after the message only an answer counts, so that a sandbox never gets two shims.

`start` imports this file, so it imports nothing slow.
"""

from __future__ import annotations

import _socket
import os
import sys

from kata.errors import Unavailable
from kata.runtime.ledger.journal import STATE_ROOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kata.shim.params import ShimParams

#: Names of the state directories of processes in standby, and of the socket in each.
PREFIX = "standby-"
SOCKET = "start"
READY = b"ready"
ACCEPTED = b"accepted"
#: Bytes of a message that a socket takes at once. A `start` with a larger environment does without standby.
MAX_MESSAGE = 64 * 1024

#: Seconds for a process, which waits for nothing else, to answer READY, and ACCEPTED.
_READY_TIMEOUT_S = 0.5
_ACCEPTED_TIMEOUT_S = 2.0


def hand_over(params: ShimParams, descriptors: tuple[int, int], state_root: str = STATE_ROOT) -> int:
    """Find a process in standby and make it the sandbox's shim.

    Args:
        params: for the process in standby.
        descriptors: the shim's listening socket and the locked ledger; they stay the caller's.
        state_root: where state directories are.

    Returns:
        The process's id, or 0 if there is none in standby.

    Raises:
        Unavailable: a process was sent the sandbox and has not answered.
    """
    message = params.encode()
    if len(message) > MAX_MESSAGE:
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
        peer.settimeout(_READY_TIMEOUT_S)
        try:
            peer.connect(path)
            if peer.recv(len(READY)) != READY:
                return 0
            pid = int.from_bytes(peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)[:4], sys.byteorder)
            rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in descriptors)
            peer.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        except OSError:
            return 0  # not there, not ready, or another start was quicker
        peer.settimeout(_ACCEPTED_TIMEOUT_S)
        try:
            answer = peer.recv(len(ACCEPTED))
        except OSError as error:
            raise Unavailable(f"process {pid} in standby was sent the sandbox and does not answer: {error}") from None
        # An end without an answer is a refusal: nothing was taken.
        return pid if answer == ACCEPTED else 0
    finally:
        peer.close()
