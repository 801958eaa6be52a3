"""All that a running sandbox answers on its management socket, path by path (docs/reference/management.md).

A path of Kata's is here under Kata's name, with Kata's fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from kata.errors import FailedPrecondition, InvalidArgument
from kata.management.server import TEXT, Request, Response, Routes
from kata.metrics.exposition import CONTENT_TYPE
from kata.protocols import agent_pb2
from kata.runtime.sandbox import statistics, watching
from kata.runtime.sandbox.agent_socket import AgentSocket
from kata.runtime.sandbox.states import State

if TYPE_CHECKING:
    from kata.runtime.devices.direct_volumes import Volumes
    from kata.runtime.sandbox.container import Container
    from kata.runtime.sandbox.sandbox import Sandbox

_MAX_SIGNAL = 64
#: Seconds that containers have to end when the sandbox is stopped, unless the request says otherwise; and the most.
_STOP_GRACE_S = 10.0
_MAX_STOP_GRACE_S = 600.0
#: Seconds that a scrape waits for the guest, unless the request says otherwise; and the most.
_GUEST_TIMEOUT_S = 1.0
_MAX_GUEST_TIMEOUT_S = 60.0


def routes(sandbox: Sandbox, directory: str, volumes: Volumes, opened: AsyncExitStack) -> Routes:
    """Return the handlers by path and method.

    Args:
        sandbox: that is asked.
        directory: its state directory.
        volumes: its direct volumes.
        opened: takes what closes what is opened for clients.
    """
    agent = AgentSocket(directory, sandbox.agent)
    opened.push_async_callback(agent.close)
    return {
        "/metrics": {"GET": partial(_metrics, sandbox)},
        "/agent-url": {"GET": partial(_agent_url, agent)},
        "/sandbox": {"GET": partial(_describe, sandbox)},
        "/process": {"GET": partial(_process, sandbox)},
        "/stats": {"GET": partial(_stats, sandbox)},
        "/events": {"GET": partial(watching.events, sandbox.events)},
        "/console": {"GET": partial(watching.console, sandbox.console)},
        "/stop": {"POST": partial(_stop, sandbox)},
        "/kill": {"POST": partial(_kill, sandbox)},
        "/pause": {"POST": partial(_pause, sandbox)},
        "/resume": {"POST": partial(_resume, sandbox)},
        "/direct-volume/stats": {"GET": partial(_volume_stats, volumes)},
        "/direct-volume/resize": {"POST": partial(_resize_volume, volumes)},
        "/iptables": {method: partial(_packet_filter, sandbox, False) for method in ("GET", "PUT")},
        "/ip6tables": {method: partial(_packet_filter, sandbox, True) for method in ("GET", "PUT")},
        "/policy": {"PUT": partial(_set_policy, sandbox)},
    }


async def _metrics(sandbox: Sandbox, request: Request) -> Response:
    """GET /metrics; `?timeout=` is how many seconds the guest may take."""
    return Response((await sandbox.metrics.text(_seconds(request.query))).encode(), CONTENT_TYPE)


def _seconds(query: Mapping[str, str]) -> float:
    """The guest's time for its metrics.

    Raises:
        InvalidArgument: it is no number of seconds, or too large.
    """
    found = query.get("timeout", f"{_GUEST_TIMEOUT_S}")
    try:
        seconds = float(found)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= _MAX_GUEST_TIMEOUT_S:
        raise InvalidArgument(f"timeout {found[:20]!a} is not a number of seconds (0 to {_MAX_GUEST_TIMEOUT_S:g})")
    return seconds


async def _agent_url(agent: AgentSocket, request: Request) -> Response:
    return Response(f"unix://{await agent.open()}".encode(), TEXT)


async def _describe(sandbox: Sandbox, request: Request) -> Response:
    return Response.of(sandbox.describe())


async def _process(sandbox: Sandbox, request: Request) -> Response:
    """The init process of `?container=` as its spec has it: what an exec process has in common with it."""
    return Response.of(sandbox.container(request.query.get("container", sandbox.id)).process_spec)


async def _stats(sandbox: Sandbox, request: Request) -> Response:
    return Response.of(await statistics.collect(sandbox))


# ------------------------------------------------------------------------------------------------------ what acts on it


async def _stop(sandbox: Sandbox, request: Request) -> Response:
    fields = request.fields()
    force, grace = fields.get("force", False), fields.get("timeout", _STOP_GRACE_S)
    if not isinstance(force, bool):
        raise InvalidArgument("force is neither true nor false")
    if isinstance(grace, bool) or not isinstance(grace, int | float) or not 0 <= grace <= _MAX_STOP_GRACE_S:
        raise InvalidArgument(f"timeout is not a number of seconds (0 to {_MAX_STOP_GRACE_S:g})")
    await sandbox.halt(0.0 if force else float(grace))
    return Response.of({})


async def _kill(sandbox: Sandbox, request: Request) -> Response:
    fields = request.fields()
    number = fields.get("signal")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number <= _MAX_SIGNAL:
        raise InvalidArgument(f"signal is not a number from 1 to {_MAX_SIGNAL}")
    for container in _chosen(sandbox, fields):
        await container.kill(number)
    return Response.of({})


async def _pause(sandbox: Sandbox, request: Request) -> Response:
    for container in _chosen(sandbox, request.fields(), State.RUNNING):
        await container.pause()
    return Response.of({})


async def _resume(sandbox: Sandbox, request: Request) -> Response:
    for container in _chosen(sandbox, request.fields(), State.PAUSED):
        await container.resume()
    return Response.of({})


def _chosen(sandbox: Sandbox, fields: Mapping[str, object], state: State | None = None) -> list[Container]:
    """The container that a request names; without a name all that have not ended, or all that are in the state.

    Raises:
        InvalidArgument: it names none.
        NotFound: there is no such container.
        FailedPrecondition: it names no container, and there is nothing to do.
    """
    name = fields.get("container")
    if isinstance(name, str):
        return [sandbox.container(name)]
    if name is not None:
        raise InvalidArgument("container is neither an id nor null")
    found = [container for container in sandbox.living() if state in (None, container.state)]
    if not found:
        raise FailedPrecondition(f"{sandbox.what} has no container that is {state or 'running'}")
    return found


# --------------------------------------------------------------------------------------------------------- Kata's paths


async def _volume_stats(volumes: Volumes, request: Request) -> Response:
    """GET /direct-volume/stats?path=: GetVolumeStats as JSON, in the form of `kata-runtime direct-volume stats`."""
    response = await volumes.stats(_field(request.query, "path"))
    condition = response.volume_condition
    return Response.of(
        {
            "usage": [
                {"available": one.available, "total": one.total, "used": one.used, "unit": one.unit}
                for one in response.usage
            ],
            "volume_condition": {"abnormal": condition.abnormal, "message": condition.message},
        }
    )


async def _resize_volume(volumes: Volumes, request: Request) -> Response:
    """POST /direct-volume/resize {"VolumePath": path, "Size": bytes}.

    Raises:
        InvalidArgument: the size is no number.
    """
    fields = request.fields()
    size = fields.get("Size")
    if isinstance(size, bool) or not isinstance(size, int):
        raise InvalidArgument("Size is not a number of bytes")
    await volumes.resize(_field(fields, "VolumePath"), size)
    return Response.of({})


async def _packet_filter(sandbox: Sandbox, ipv6: bool, request: Request) -> Response:
    """GET: the tables as iptables-save(8) prints them. PUT: as iptables-restore(8) reads them; answers what it says."""
    if request.method == "GET":
        read = await sandbox.agent.ip_tables(agent_pb2.GetIPTablesRequest(is_ipv6=ipv6))
        return Response(read.data, TEXT)
    wrote = await sandbox.agent.set_ip_tables(agent_pb2.SetIPTablesRequest(is_ipv6=ipv6, data=request.body))
    return Response(wrote.data, TEXT)


async def _set_policy(sandbox: Sandbox, request: Request) -> Response:
    """PUT /policy: the body is the policy, for a sandbox that has none.

    Raises:
        InvalidArgument: it is no text in UTF-8; or the agent does not take it.
    """
    try:
        await sandbox.agent.set_policy(request.body.decode())
    except UnicodeDecodeError as error:
        raise InvalidArgument("the policy is not text in UTF-8") from error
    return Response()


def _field(fields: Mapping[str, object], name: str) -> str:
    found = fields.get(name)
    if not isinstance(found, str) or not found:
        raise InvalidArgument(f"{name} is missing")
    return found
