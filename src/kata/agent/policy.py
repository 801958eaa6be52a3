"""The policy of this agent: set once, then it stands before the handlers. Without one nothing is in their way.

A blocked call is answered with PERMISSION_DENIED, but reading output: that is read, thrown away, and has an end, as in
Kata, so that the process goes on and the host need not know.
"""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from kata.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from kata.protocols import agent_pb2 as pb
from kata.ttrpc import CallContext, Handler, StreamHandler
from kata.ttrpc.context import Answer, UnaryHandler
from kata.ttrpc.stream import Stream
from kata.ttrpc.typed import Rpc, rpcs

if TYPE_CHECKING:
    from kata.policy.document import Policy

log = logging.getLogger(__name__)

#: Of the guest image.
OF_IMAGE = "/etc/kata-agent.policy"
#: Names another file, as in Kata.
VARIABLE = "KATA_AGENT_POLICY_FILE"

_SERVICE = pb.DESCRIPTOR.services_by_name["AgentService"]
_READS = pb.ReadStreamRequest.DESCRIPTOR.name


def at_start(is_init: bool) -> str | None:
    """The policy that the agent has from its start; None if there is none.

    Args:
        is_init: whether it is PID 1, whose image may have one.

    Raises:
        NotFound: the file that VARIABLE names cannot be read.
        InvalidArgument: the file is not text.
    """
    named = os.environ.get(VARIABLE, "")
    path = named or (OF_IMAGE if is_init else "")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        if named:
            raise NotFound(f"the policy {named}: {error.strerror}") from error
        return None
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"the policy {path} is not text in UTF-8") from error


class Guard:
    """Where the policy is set.

    Args:
        calls: the server's handlers, which the policy is put before.
    """

    def __init__(self, calls: MutableMapping[tuple[str, str], Handler]) -> None:
        self._calls = calls
        self._is_set = False

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """SetPolicy."""
        return {(_SERVICE.full_name, "SetPolicy"): self._set_policy}

    async def _set_policy(self, ctx: CallContext, payload: bytes) -> Answer:
        """SetPolicy: once.

        Raises:
            InvalidArgument: it is no policy.
            FailedPrecondition: there is one.
        """
        try:
            request = pb.SetPolicyRequest.FromString(payload)
        except DecodeError as error:
            raise InvalidArgument("malformed SetPolicyRequest") from error
        self.set(request.policy)
        return Empty().SerializeToString()

    def set(self, text: str) -> None:
        """Set the policy, for as long as this agent runs.

        Raises:
            FailedPrecondition: there is one.
            InvalidArgument: it is no policy.
        """
        from kata.policy import document  # most agents never have one

        if self._is_set:
            raise FailedPrecondition("the policy is set already, and stays")
        policy = document.parse(text)
        for name, rpc in rpcs(_SERVICE).items():
            handler = self._calls.get((rpc.service, name))
            if handler and not isinstance(handler, StreamHandler) and rpc.request.DESCRIPTOR.name in document.ENDPOINTS:
                self._calls[rpc.service, name] = _guarded(policy, rpc, handler)
        for call, endpoint in document.OWN_CALLS.items():
            if call in self._calls and (told := policy.blocked(endpoint)):
                self._calls[call] = _refusing(told, streams=isinstance(self._calls[call], StreamHandler))
        self._is_set = True
        log.info("a policy is set: %d endpoints are allowed", len(policy.allowed))


def _guarded(policy: Policy, rpc: Rpc, handler: UnaryHandler) -> UnaryHandler:
    """The handler with the policy before it, or itself if that has nothing to say."""
    endpoint = rpc.request.DESCRIPTOR.name
    has_rules = endpoint in policy.rules
    if not has_rules and not policy.blocked(endpoint):
        return handler

    async def handle(ctx: CallContext, payload: bytes) -> Answer:
        request = None
        if has_rules:
            try:
                request = rpc.request.FromString(payload)
            except DecodeError as error:
                raise InvalidArgument(f"malformed {endpoint}") from error
        told = policy.blocked(endpoint, request)
        if not told:
            return await handler(ctx, payload)
        if endpoint != _READS:
            raise PermissionDenied(told)
        while await handler(ctx, payload):
            pass
        return b""

    return handle


def _refusing(told: str, *, streams: bool) -> Handler:
    async def handle(ctx: CallContext, payload: bytes) -> Answer:
        raise PermissionDenied(told)

    async def run(ctx: CallContext, stream: Stream) -> bytes | None:
        raise PermissionDenied(told)

    return StreamHandler(run) if streams else handle
