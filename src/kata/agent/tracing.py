"""Spans of the calls that the host traces, and of the steps of each: recorded here, encoded in `kata.agent.otlp`.

Not by OpenTelemetry's SDK: on the host it takes 24 ms and 2 MB more than the agent, in an emulated guest ten to thirty
times as long, in the middle of a start, and the guest image would have to carry it. Times are the guest's: those of a
call share one reading of its clock, which the host may set meanwhile, and the host corrects them
(`kata.runtime.tracing.guest`). Off, a call costs one `if`, and a step one look at a context variable.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from kata.log_fields import CONTAINER
from kata.protocols import traces
from kata.ttrpc import CallContext, Handler, Server, Stream, StreamHandler
from kata.ttrpc.context import Answer
from kata.ttrpc.observer import Done

log = logging.getLogger(__name__)

#: Calls whose spans wait for the host, and their bytes; beyond that the oldest are dropped.
_MAX_CALLS, _MAX_BYTES = 256, 1 << 20
#: Steps of a call.
_MAX_STEPS = 64
#: Kata's service whose calls switch tracing on and off.
_AGENT_SERVICE = "grpc.AgentService"


class Span(NamedTuple):
    """A call, or a step of one.

    Attributes:
        parent_id: the caller's span; of a step, its call's or an outer step's.
        begin_ns, end_ns: nanoseconds since 1970, by the guest's clock.
        code: gRPC code of a call; of a step, 0 or UNKNOWN.
        error: what went wrong; "" for nothing.
    """

    name: str
    span_id: bytes
    parent_id: bytes
    begin_ns: int
    end_ns: int
    code: int = 0
    error: str = ""
    container: str = ""


class _Call:
    """A traced call while it runs."""

    def __init__(self, caller: traces.TraceParent, name: str) -> None:
        self.caller = caller
        self.name = name
        self.span_id = os.urandom(8)
        self.steps: list[Span] = []
        self._clock_ns = time.time_ns() - time.monotonic_ns()
        self.begin_ns = self.now_ns()

    def now_ns(self) -> int:
        """The time by the clock as it was when the call began."""
        return self._clock_ns + time.monotonic_ns()


#: The call that this task works on, and the id of the span around it.
_CURRENT: ContextVar[tuple[_Call, bytes] | None] = ContextVar("traced call", default=None)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Record the body as a step of the call that it belongs to, if that is traced."""
    current = _CURRENT.get()
    if current is None or len(current[0].steps) >= _MAX_STEPS:
        yield
        return
    call, parent_id = current
    span_id, begin_ns, error = os.urandom(8), call.now_ns(), ""
    token = _CURRENT.set((call, span_id))
    try:
        yield
    except BaseException as raised:
        error = str(raised) or type(raised).__name__
        raise
    finally:
        _CURRENT.reset(token)
        code = 2 if error else 0
        call.steps.append(Span(name, span_id, parent_id, begin_ns, call.now_ns(), code, error))


class Tracing:
    """The traces of one agent.

    Args:
        server: the agent's, whose calls are traced.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._changed = asyncio.Event()
        self._closed = False

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """The calls that control it: Kata's StartTracing and StopTracing, and `kata.protocols.traces`."""
        return {
            (_AGENT_SERVICE, "StartTracing"): self._start,
            (_AGENT_SERVICE, "StopTracing"): self._stop,
            (traces.SERVICE, traces.FOLLOW): StreamHandler(self._follow),
        }

    def start(self) -> None:
        """Trace the calls from now on whose caller does. Idempotent."""
        self.stop()
        self._server.observers.append(self._observe)

    def stop(self) -> None:
        """Trace no more calls. Idempotent."""
        if self._observe in self._server.observers:
            self._server.observers.remove(self._observe)

    def close(self) -> None:
        """End what follows, once it has all spans."""
        self._closed = True
        self._changed.set()

    async def _start(self, ctx: CallContext, payload: bytes) -> Answer:
        self.start()
        return b""

    async def _stop(self, ctx: CallContext, payload: bytes) -> Answer:
        self.stop()
        return b""

    async def _follow(self, ctx: CallContext, stream: Stream) -> None:
        while (payload := await self._next()) is not None:
            await stream.send(payload)

    async def connect(self, sock: socket.socket, address: object) -> None:
        """Send the spans as frames over a connection to the host, as Kata's agent does over vsock.

        Returns when the host is not there, or has closed the connection: whoever wants spans listens beforehand.

        Args:
            sock: owned from now on; not blocking.
            address: of the host.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(sock, address)  # type: ignore[arg-type]
            while (payload := await self._next()) is not None:
                await loop.sock_sendall(sock, traces.frame(payload))
        except OSError as error:
            log.warning("spans cannot be sent to the host: %s", error.strerror)
        finally:
            sock.close()

    async def _next(self) -> bytes | None:
        """Wait for the spans of a call; None at the end."""
        while not self._waiting:
            if self._closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        payload = self._waiting.popleft()
        self._size -= len(payload)
        return payload

    def _observe(self, service: str, method: str, payload: bytes, metadata: dict[str, str]) -> Done | None:
        caller = traces.parse(metadata.get(traces.TRACEPARENT, ""))
        if caller is None or not caller.sampled:
            return None
        call = _Call(caller, f"{service}/{method}")
        _CURRENT.set((call, call.span_id))  # each call is a task of its own

        def done(code: int, text: str) -> None:
            self._end(call, code, text)

        return done

    def _end(self, call: _Call, code: int, error: str) -> None:
        # Imported with the first span: most guests never have one.
        from kata.agent import otlp

        _CURRENT.set(None)
        end_ns, container = call.now_ns(), CONTAINER.get()
        whole = Span(call.name, call.span_id, call.caller.span_id, call.begin_ns, end_ns, code, error, container)
        payload = otlp.encode(call.caller.trace_id, [whole, *call.steps])
        self._waiting.append(payload)
        self._size += len(payload)
        while len(self._waiting) > _MAX_CALLS or self._size > _MAX_BYTES:
            self._size -= len(self._waiting.popleft())
        self._changed.set()
