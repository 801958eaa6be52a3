"""Events for containerd: in order, without delaying any request, and across a restart of containerd.

They go to `containerd.services.events.ttrpc.v1.Events/Forward` on the socket that containerd names in TTRPC_ADDRESS
(containerd, core/runtime/v2/README.md, "Events"). An event's type URL is the bare message name, as in containerd's type
registry.
"""

from __future__ import annotations

import asyncio
import logging
import time

from google.protobuf import any_pb2, timestamp_pb2
from google.protobuf.message import Message

from kata import ttrpc
from kata.protocols.containerd import events_service_pb2

log = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
#: Events that wait for a containerd that is away; beyond that the oldest are dropped.
_MAX_QUEUE = 2048
_MIN_RETRY_S = 0.01
_MAX_RETRY_S = 1.0

_TOPICS = {
    "TaskCreate": "/tasks/create",
    "TaskStart": "/tasks/start",
    "TaskExit": "/tasks/exit",
    "TaskDelete": "/tasks/delete",
    "TaskExecAdded": "/tasks/exec-added",
    "TaskExecStarted": "/tasks/exec-started",
    "TaskOOM": "/tasks/oom",
    "TaskPaused": "/tasks/paused",
    "TaskResumed": "/tasks/resumed",
}


def pack(message: Message) -> any_pb2.Any:
    """A message as an Any with the type URL of containerd's type registry."""
    return any_pb2.Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def timestamp(at_ns: int) -> timestamp_pb2.Timestamp:
    """A time in nanoseconds since the epoch."""
    seconds, nanos = divmod(at_ns, 1_000_000_000)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)


class Publisher:
    """Sends events in the order in which they were published.

    Args:
        address: path of containerd's ttrpc socket, with or without "unix://"; "": events are only logged.
        namespace: containerd's, of the sandbox.
    """

    def __init__(self, address: str, namespace: str) -> None:
        self._path = address.removeprefix("unix://")
        self._namespace = namespace
        self._queue: asyncio.Queue[events_service_pb2.ForwardRequest] = asyncio.Queue()
        self._client: ttrpc.Client | None = None

    def publish(self, event: Message) -> None:
        """Queue an event, and return at once."""
        log.debug("event %s: %s", event.DESCRIPTOR.name, str(event).replace("\n", " "))
        if not self._path:
            return
        if self._queue.qsize() >= _MAX_QUEUE:
            lost = self._queue.get_nowait()
            self._queue.task_done()
            log.warning("containerd has been away for too long: event %s is dropped", lost.envelope.topic)
        self._queue.put_nowait(
            events_service_pb2.ForwardRequest(
                envelope=events_service_pb2.Envelope(
                    timestamp=timestamp(time.time_ns()),
                    namespace=self._namespace,
                    topic=_TOPICS[event.DESCRIPTOR.name],
                    event=pack(event),
                )
            )
        )

    async def run(self) -> None:
        """Send what is queued, until cancelled."""
        while True:
            request = await self._queue.get()
            await self._send(request)
            self._queue.task_done()

    async def _send(self, request: events_service_pb2.ForwardRequest) -> None:
        """Try until containerd has taken it."""
        delay = _MIN_RETRY_S
        while True:
            try:
                if self._client is None:
                    self._client = await ttrpc.Client.connect_unix(self._path)
                await self._client.call(
                    "containerd.services.events.ttrpc.v1.Events",
                    "Forward",
                    request.SerializeToString(),
                    timeout=_TIMEOUT_S,
                )
                return
            except (OSError, ttrpc.TtrpcError) as error:
                # A containerd that hangs may get the event twice, which is better than never.
                hangs = isinstance(error, ttrpc.StatusError) and error.code == ttrpc.Code.DEADLINE_EXCEEDED
                if not hangs and not isinstance(error, OSError | ttrpc.ConnectionClosed):
                    log.warning("containerd refused event %s: %s", request.envelope.topic, error)
                    return
                log.debug("event %s waits for containerd: %s", request.envelope.topic, error)
            await self._disconnect()
            await asyncio.sleep(delay)
            delay = min(delay * 2, _MAX_RETRY_S)

    async def _disconnect(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def close(self, grace_s: float) -> None:
        """Wait up to `grace_s` seconds for the queue to empty, then disconnect."""
        try:
            async with asyncio.timeout(grace_s):
                await self._queue.join()
        except TimeoutError:
            log.warning("%d events were not delivered", self._queue.qsize())
        await self._disconnect()
