"""The calls of containerd as traces: one for each start, exec and stop, which are several calls each.

A call that names a span of containerd's becomes a part of that. Otherwise the calls of an operation are parts of a span
of its own: Create and Start of a container are "start", Exec and Start of a process "exec", and Kill, with a signal
that ends it, and Delete "stop". Questions, and what waits or goes with a stream, are not traced.

Imported only when tracing is on.
"""

from __future__ import annotations

import signal
from pathlib import Path

from google.protobuf.message import DecodeError, Message
from opentelemetry import context
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind

from kata.errors import KataError
from kata.oci.spec import load_bundle
from kata.protocols import traces
from kata.protocols.containerd import task_v2_pb2
from kata.runtime.tracing import identity
from kata.runtime.tracing.tracer import Tracer, end_call, fail, within, within_remote
from kata.shim.params import ShimParams
from kata.ttrpc.observer import Done

_REQUESTS: dict[str, type[Message]] = {
    "Create": task_v2_pb2.CreateTaskRequest,
    "Start": task_v2_pb2.StartRequest,
    "Exec": task_v2_pb2.ExecProcessRequest,
    "Kill": task_v2_pb2.KillRequest,
    "Delete": task_v2_pb2.DeleteRequest,
    "Pause": task_v2_pb2.PauseRequest,
    "Resume": task_v2_pb2.ResumeRequest,
    "Update": task_v2_pb2.UpdateTaskRequest,
    "Shutdown": task_v2_pb2.ShutdownRequest,
}
_ENDING = (signal.SIGTERM, signal.SIGKILL)

#: Name, container, exec id.
_Key = tuple[str, str, str]


def annotations_of(params: ShimParams) -> dict[str, str]:
    """Annotations of the sandbox's first container; none if its bundle cannot be read, which is reported elsewhere."""
    try:
        return dict(load_bundle(Path(params.bundle)).spec.get("annotations") or {})
    except KataError:
        return {}


class TaskTracing:
    """Observes the server of the Task service.

    Args:
        tracer: of this process.
        begun: when the shim began, by `time.monotonic`: the first call's work began then.
    """

    def __init__(self, tracer: Tracer, begun: float) -> None:
        self._tracer = tracer
        self._begun: float | None = begun
        self._operations: dict[_Key, Span] = {}

    def __call__(self, service: str, method: str, payload: bytes, metadata: dict[str, str]) -> Done | None:
        """Observe a call; see `kata.ttrpc.observer`."""
        kind = _REQUESTS.get(method)
        try:
            request = kind.FromString(payload) if kind else None
        except DecodeError:
            request = None
        if request is None:
            return None
        begun, self._begun = self._begun, None
        key = _operation(method, request)
        caller = traces.parse(metadata.get(traces.TRACEPARENT, ""))
        if method == "Delete" and key and key[2] and key not in self._operations:
            return None  # an exec process that has run: nothing happens
        parent = within_remote(caller) if caller else self._within(key, begun)
        span = self._tracer.begin_call(service, method, SpanKind.SERVER, parent=parent, begun=begun)
        context.attach(within(span))  # each call is a task of its own

        def done(code: int, text: str) -> None:
            end_call(span, code, text)
            if key and (method in ("Start", "Delete") or (code and method != "Kill")):
                self._end(key, text if code else "")
            if method == "Delete" and not code:
                self._abandon(key)

        return done

    def close(self) -> None:
        """End what is still open."""
        for key in list(self._operations):
            self._end(key, "")

    def _within(self, key: _Key | None, begun: float | None) -> Context:
        """The context of the operation that a call belongs to, which begins with its first call."""
        if key is None:
            return Context()
        name, container, exec_id = key
        if key not in self._operations:
            attributes: dict[str, str | int] = {identity.CONTAINER: container}
            if exec_id:
                attributes[identity.EXEC] = exec_id
            self._operations[key] = self._tracer.begin(name, parent=Context(), attributes=attributes, begun=begun)
        return within(self._operations[key])

    def _end(self, key: _Key, error: str) -> None:
        span = self._operations.pop(key, None)
        if span is not None:
            if error:
                fail(span, error)
            span.end()

    def _abandon(self, key: _Key | None) -> None:
        """A container has been deleted: what was prepared in it is never started."""
        for other in list(self._operations):
            if key and not key[2] and other[1] == key[1]:
                self._end(other, "")


def _operation(method: str, request: Message) -> _Key | None:
    """The operation that a call belongs to; None if it is one by itself."""
    container, exec_id = getattr(request, "id", ""), getattr(request, "exec_id", "")
    match method:
        case "Create":
            return "start", container, ""
        case "Exec":
            return "exec", container, exec_id
        case "Start":
            return ("exec" if exec_id else "start"), container, exec_id
        case "Delete":
            return ("exec" if exec_id else "stop"), container, exec_id
        case "Kill" if not exec_id and getattr(request, "signal", 0) in _ENDING:
            return "stop", container, ""
    return None
