"""Typed client of the agent in the guest: one method for each RPC, with errors of `kata.errors`.

The guest is hostile: every call has a deadline, except those that wait for an event; answers are bounded by the
transport (4 MiB for each message) and checked by the caller. Every method raises what the agent answers, as the error
of that gRPC code, `DeadlineExceeded` without an answer, and `Unavailable` without a connection.

Reference: Kata Containers' src/libs/protocols/protos/agent.proto.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager

from google.protobuf.message import Message

from kata import ttrpc
from kata.errors import DeadlineExceeded, Internal, InvalidArgument, KataError, Unavailable, from_code
from kata.metrics.durations import Durations
from kata.protocols import agent_pb2, csi_pb2, forward, health_pb2, oci_pb2, processes, standby, types_pb2
from kata.runtime.agent_client.first_calls import FirstCalls
from kata.ttrpc.relay import relay
from kata.ttrpc.typed import Stub

#: Seconds for a request unless it says otherwise (Kata's default).
REQUEST_TIMEOUT_S = 60.0
#: Bytes requested by one read of a stream: enough for round trips not to limit throughput, and well below 4 MiB.
READ_SIZE = 1 << 20
#: Characters of an error message of the guest that are shown.
_MAX_TEXT = 1000
#: The errors by which Kata's older agents answer at the end of a stream.
END_OF_STREAM = ("read meet eof", "eof")
#: Seconds between two out-of-memory events, at least.
_OOM_INTERVAL_S = 0.1
#: Bytes sent in one write to a container's standard input.
WRITE_SIZE = 1 << 20


@contextmanager
def _explaining(what: str, timeout: float | None) -> Iterator[None]:
    """Translate errors of a call into `kata.errors`, with what was called for.

    Args:
        what: what was called for, e.g. "create container x"; begins the message.
        timeout: the call's, in seconds.

    Raises:
        DeadlineExceeded: the agent did not answer in time.
        Unavailable: the connection was closed before the answer.
        InvalidArgument: the request is too large; nothing was sent.
        Internal: the client is used in a wrong way.
        KataError: the agent answered with an error; its code decides the type.
    """  # noqa: DOC501 - `from_code` makes a KataError
    try:
        yield
    except ttrpc.CallTimeout as error:
        raise DeadlineExceeded(
            f"{what}: the guest's agent did not answer within {timeout or 0:.0f} s",
            hint="the guest's console is in console.log of the sandbox's state directory",
        ) from error
    except ttrpc.StatusError as error:
        # A log that shows where this came from has the guest's own text as well.
        error.message = shown(error.message)
        raise from_code(error.code, f"{what}: {_named_once(what, error.message)}") from error
    except ttrpc.ConnectionClosed as error:
        raise Unavailable(f"{what}: the connection to the guest's agent is closed") from error
    except ttrpc.MessageTooLarge as error:
        raise InvalidArgument(
            f"{what}: {error.size} bytes are too much for the guest's agent, which takes {error.limit}",
            hint="most of it is usually in the spec: mounts, environment variables or annotations",
        ) from error
    except ttrpc.LocalProtocolError as error:
        raise Internal(f"{what}: {error}") from error


def _named_once(what: str, said: str) -> str:
    """What the agent has said, without the container's name that the message has already: "it is paused"."""
    container = f"container {what.rpartition('container ')[2]}"
    if said.startswith(f"{container}: "):
        return said.removeprefix(f"{container}: ")
    if said.startswith(f"{container} "):
        return f"it{said.removeprefix(container)}"
    return said


class AgentClient:
    """One connection to an agent.

    Args:
        client: connected to it; owned from here on.

    Attributes:
        durations: of the calls, by the full name of the request's message.
    """

    def __init__(self, client: ttrpc.Client) -> None:
        self.durations = Durations()
        self._client = client
        self._health = Stub(client, health_pb2.DESCRIPTOR.services_by_name["Health"])
        self._agent = Stub(client, agent_pb2.DESCRIPTOR.services_by_name["AgentService"])

    @classmethod
    async def connect(cls, channel: socket.socket) -> AgentClient:
        """A client on the host's end of the agent's channel, which it owns from here on."""
        return cls(await ttrpc.Client.from_socket(channel))

    @classmethod
    async def after_first_calls(cls, channel: socket.socket, first_calls: FirstCalls) -> AgentClient:
        """As `connect`, for a channel on which the first calls were sent already; the caller awaits `made_unique`."""
        return cls(await ttrpc.Client.from_socket(channel, first_calls.connection))

    @property
    def client(self) -> ttrpc.Client:
        """The connection, for calls that no method here makes."""
        return self._client

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        await self._client.close()

    async def _call(
        self,
        what: str,
        method: str,
        request: Message,
        *,
        timeout: float | None = REQUEST_TIMEOUT_S,
        metadata: Mapping[str, str] | None = None,
    ) -> Message:
        with _explaining(what, timeout), self.durations.timed(request.DESCRIPTOR.full_name):
            response: Message = await self._agent.call(method, request, timeout=timeout, metadata=metadata)
        return response

    @property
    def heard(self) -> float:
        """When something came from the agent last, by the loop's clock."""
        return self._client.heard

    async def check(self, timeout: float | None = None) -> None:
        """Check that the agent serves. Without a timeout, the caller has a deadline.

        Raises:
            Unavailable: it does not serve.
        """
        request = health_pb2.CheckRequest()
        with _explaining("health check", timeout), self.durations.timed(request.DESCRIPTOR.full_name):
            answer = await self._health.call("Check", request, timeout=timeout)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise Unavailable(f"health check: the guest's agent answers with status {answer.status}")

    async def made_unique(self, first_calls: FirstCalls) -> None:
        """Wait for the answers to `kata.runtime.agent_client.first_calls`; the caller has a deadline."""
        for what, stream_id in (
            ("reseed the random source", first_calls.reseed),
            ("set the clock", first_calls.set_time),
        ):
            with _explaining(what, None):
                await self._client.answer(stream_id)

    async def set_time(self, now_ns: int) -> None:
        """Set the guest's clock to nanoseconds since 1970; the caller has a deadline."""
        seconds, rest = divmod(now_ns, 10**9)
        request = agent_pb2.SetGuestDateTimeRequest(Sec=seconds, Usec=rest // 1000)
        await self._call("set the clock", "SetGuestDateTime", request, timeout=None)

    async def online(self, vcpus: int, timeout: float, *, memory: bool) -> None:
        """Bring hot-plugged vCPUs and memory online.

        Args:
            vcpus: how many.
            timeout: seconds.
            memory: whether there is new memory, all of which is brought online.
        """
        request = agent_pb2.OnlineCPUMemRequest(wait=True, nb_cpus=vcpus, cpu_only=not memory)
        await self._call("bring vCPUs and memory online", "OnlineCPUMem", request, timeout=timeout)

    async def warm_up(self) -> None:
        """Warm up the guest by running a container once; before `create_sandbox`."""
        with _explaining("warm up", REQUEST_TIMEOUT_S):
            await self._client.call(standby.SERVICE, standby.WARM_UP, b"", timeout=REQUEST_TIMEOUT_S)

    async def forward(
        self, address: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Forward a connection to a port in the guest; returns when both directions have ended.

        Args:
            address: in the guest.
            port: in the guest.
            reader: of the connection.
            writer: of the connection.

        Raises:
            TtrpcError, OSError: the guest cannot connect, or either connection broke.
        """
        request = forward.destination(address, port)
        async with self._client.stream(forward.SERVICE, forward.CONNECT, request) as stream:
            await relay(stream, reader, writer)

    async def start_tracing(self, timeout: float) -> None:
        """Have the agent make spans of calls that have a `traceparent`, as `kata.protocols.traces` says."""
        await self._call("start tracing", "StartTracing", agent_pb2.StartTracingRequest(), timeout=timeout)

    async def set_policy(self, policy: str) -> None:
        """Set the policy that decides about all later calls, once.

        Raises:
            InvalidArgument: it is no policy.
            FailedPrecondition: the agent has one.
        """
        await self._call("set the policy", "SetPolicy", agent_pb2.SetPolicyRequest(policy=policy))

    async def create_sandbox(self, request: agent_pb2.CreateSandboxRequest) -> None:
        """Set up the guest for its sandbox."""
        await self._call("create sandbox", "CreateSandbox", request)

    async def destroy_sandbox(self, timeout: float) -> None:
        """Have the guest flush its file systems, within `timeout` seconds."""
        await self._call("destroy sandbox", "DestroySandbox", agent_pb2.DestroySandboxRequest(), timeout=timeout)

    async def create_container(self, request: agent_pb2.CreateContainerRequest, *, timeout: float) -> None:
        """Create a container, within `timeout` seconds."""
        await self._call(f"create container {request.container_id}", "CreateContainer", request, timeout=timeout)

    async def start_container(self, container_id: str) -> None:
        """Start a container's init process."""
        request = agent_pb2.StartContainerRequest(container_id=container_id)
        await self._call(f"start container {container_id}", "StartContainer", request)

    async def remove_container(self, container_id: str, *, timeout: float) -> None:
        """Remove a container, within `timeout` seconds."""
        request = agent_pb2.RemoveContainerRequest(container_id=container_id, timeout=max(1, int(timeout)))
        await self._call(f"remove container {container_id}", "RemoveContainer", request, timeout=timeout + 1)

    async def exec_process(
        self, container_id: str, exec_id: str, process: oci_pb2.Process, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Start an exec process, in the guest itself if no container is named.

        `metadata` is for what is between this and the agent (`kata.protocols.bound`).
        """
        request = agent_pb2.ExecProcessRequest(container_id=container_id, exec_id=exec_id, process=process)
        what = f"exec in container {container_id}" if container_id else "exec in the guest"
        await self._call(what, "ExecProcess", request, metadata=metadata)

    async def signal_process(self, container_id: str, exec_id: str, signal: int) -> None:
        """Send a signal to a process; the exec id "" is the init process, as in all methods."""
        request = agent_pb2.SignalProcessRequest(container_id=container_id, exec_id=exec_id, signal=signal)
        await self._call(f"signal {signal} to container {container_id}", "SignalProcess", request)

    async def wait_process(self, container_id: str, exec_id: str) -> int:
        """Wait, without a deadline, for a process to exit; returns its status, 128+n after signal n."""
        request = agent_pb2.WaitProcessRequest(container_id=container_id, exec_id=exec_id)
        answer = await self._call(f"wait for container {container_id}", "WaitProcess", request, timeout=None)
        return int(answer.status) & 0xFF  # type: ignore[attr-defined]

    async def update_container(self, container_id: str, resources: oci_pb2.LinuxResources) -> None:
        """Change a container's limits."""
        request = agent_pb2.UpdateContainerRequest(container_id=container_id, resources=resources)
        await self._call(f"update container {container_id}", "UpdateContainer", request)

    async def stats_container(self, container_id: str) -> agent_pb2.StatsContainerResponse:
        """A container's cgroup and network statistics."""
        request = agent_pb2.StatsContainerRequest(container_id=container_id)
        return await self._call(f"statistics of container {container_id}", "StatsContainer", request)  # type: ignore[return-value]

    async def metrics(self, timeout: float) -> str:
        """The metrics of agent and guest as Prometheus text, of any content, within `timeout` seconds."""
        answer = await self._call("metrics", "GetMetrics", agent_pb2.GetMetricsRequest(), timeout=timeout)
        return str(answer.metrics)  # type: ignore[attr-defined]

    async def volume_stats(self, point: str) -> csi_pb2.VolumeStatsResponse:
        """The usage of the volume that the guest has mounted at `point`."""
        request = agent_pb2.VolumeStatsRequest(volume_guest_path=point)
        return await self._call(f"statistics of volume {point}", "GetVolumeStats", request)  # type: ignore[return-value]

    async def resize_volume(self, point: str, size: int) -> None:
        """Grow the file system of a volume to its disk, which has now `size` bytes."""
        request = agent_pb2.ResizeVolumeRequest(volume_guest_path=point, size=size)
        await self._call(f"grow volume {point}", "ResizeVolume", request)

    async def add_swap(self, path: str) -> None:
        """Have the guest use the disk at a PCI path such as "09/01" as swap."""
        request = agent_pb2.AddSwapRequest(PCIPath=[int(slot, 16) for slot in path.split("/")])
        await self._call(f"use the disk at {path} as swap", "AddSwap", request)

    async def update_interface(self, interface: types_pb2.Interface) -> None:
        """Configure a network interface."""
        request = agent_pb2.UpdateInterfaceRequest(interface=interface)
        await self._call(f"configure network interface {interface.name}", "UpdateInterface", request)

    async def update_routes(self, routes: agent_pb2.Routes) -> None:
        """Replace all routes."""
        await self._call("set routes", "UpdateRoutes", agent_pb2.UpdateRoutesRequest(routes=routes))

    async def add_neighbours(self, neighbours: agent_pb2.ARPNeighbors) -> None:
        """Add permanent neighbours."""
        request = agent_pb2.AddARPNeighborsRequest(neighbors=neighbours)
        await self._call("add neighbours", "AddARPNeighbors", request)

    async def ip_tables(self, request: agent_pb2.GetIPTablesRequest) -> agent_pb2.GetIPTablesResponse:
        """The guest's packet filter in the format of iptables-save(8)."""
        return await self._call("read the packet filter", "GetIPTables", request)  # type: ignore[return-value]

    async def set_ip_tables(self, request: agent_pb2.SetIPTablesRequest) -> agent_pb2.SetIPTablesResponse:
        """Replace tables of the guest's packet filter; returns the output of iptables-restore(8)."""
        return await self._call("write the packet filter", "SetIPTables", request)  # type: ignore[return-value]

    async def pause_container(self, container_id: str) -> None:
        """Freeze a container's processes."""
        request = agent_pb2.PauseContainerRequest(container_id=container_id)
        await self._call(f"pause container {container_id}", "PauseContainer", request)

    async def resume_container(self, container_id: str) -> None:
        """Thaw a container's processes."""
        request = agent_pb2.ResumeContainerRequest(container_id=container_id)
        await self._call(f"resume container {container_id}", "ResumeContainer", request)

    async def resize(self, container_id: str, exec_id: str, *, rows: int, columns: int) -> None:
        """Set the size of a process's terminal."""
        request = agent_pb2.TtyWinResizeRequest(container_id=container_id, exec_id=exec_id, row=rows, column=columns)
        await self._call(f"resize the terminal of container {container_id}", "TtyWinResize", request)

    async def read_stdout(self, container_id: str, exec_id: str) -> bytes:
        """The next bytes of standard output; empty at its end."""
        return await self._read("ReadStdout", container_id, exec_id)

    async def read_stderr(self, container_id: str, exec_id: str) -> bytes:
        """The next bytes of standard error; empty at its end."""
        return await self._read("ReadStderr", container_id, exec_id)

    async def _read(self, method: str, container_id: str, exec_id: str) -> bytes:
        request = agent_pb2.ReadStreamRequest(container_id=container_id, exec_id=exec_id, len=READ_SIZE)
        try:
            answer = await self._call(f"read from container {container_id}", method, request, timeout=None)
        except KataError as error:
            # What the guest said, without our words around it: they name the container, which may be called anything.
            said = error.__cause__
            if isinstance(said, ttrpc.StatusError) and said.message.lower() in END_OF_STREAM:
                return b""
            raise
        return bytes(answer.data)  # type: ignore[attr-defined]

    async def output_drained(self, container_id: str, exec_id: str) -> None:
        """Wait, without a deadline, until the output that a process has written up to now has been read."""
        what = f"output of container {container_id}"
        await self._about(what, processes.DRAINED, container_id, exec_id, timeout=None)

    async def release_output(self, container_id: str, exec_id: str) -> None:
        """Have the rest of a process's output thrown away."""
        await self._about(f"close the output of container {container_id}", processes.RELEASE, container_id, exec_id)

    async def processes(self, container_id: str) -> list[tuple[int, str | None]]:
        """A container's processes, as `kata.protocols.processes.parse_list` returns them."""
        answer = await self._about(f"processes of container {container_id}", processes.LIST, container_id)
        return processes.parse_list(answer)

    async def _about(
        self,
        what: str,
        method: str,
        container_id: str,
        exec_id: str = "",
        *,
        timeout: float | None = REQUEST_TIMEOUT_S,
    ) -> bytes:
        """A call of `kata.protocols.processes`."""
        request = agent_pb2.WaitProcessRequest(container_id=container_id, exec_id=exec_id).SerializeToString()
        with _explaining(what, timeout):
            return await self._client.call(processes.SERVICE, method, request, timeout=timeout)

    async def write_stdin(self, container_id: str, exec_id: str, data: bytes) -> None:
        """Write all of `data`, without a deadline: a container may not read for a long time.

        Raises:
            Unavailable: the agent reports a length that cannot be, or the connection is closed.
            KataError: the agent's error.
        """
        view = memoryview(data)
        while view:
            request = agent_pb2.WriteStreamRequest(
                container_id=container_id, exec_id=exec_id, data=bytes(view[:WRITE_SIZE])
            )
            answer = await self._call(f"write to container {container_id}", "WriteStdin", request, timeout=None)
            written = int(answer.len)  # type: ignore[attr-defined]
            if not 0 < written <= len(view):
                raise Unavailable(f"write to container {container_id}: invalid answer of {written} bytes")
            view = view[written:]

    async def close_stdin(self, container_id: str, exec_id: str) -> None:
        """Close a process's standard input."""
        request = agent_pb2.CloseStdinRequest(container_id=container_id, exec_id=exec_id)
        await self._call(f"close standard input of container {container_id}", "CloseStdin", request)

    async def oom_events(self) -> AsyncIterator[str]:
        """Container ids, one for each out-of-memory kill in the guest, until the connection closes."""
        while True:
            answer = await self._call(
                "out-of-memory events", "GetOOMEvent", agent_pb2.GetOOMEventRequest(), timeout=None
            )
            yield str(answer.container_id)  # type: ignore[attr-defined]
            # Each is an event for container engines, and a guest may tell of any number.
            await asyncio.sleep(_OOM_INTERVAL_S)


def shown(text: str) -> str:
    """Text of the guest on one line of bounded length, for the host's logs and terminals."""
    line = "".join(character if character.isprintable() else " " for character in text[:_MAX_TEXT])
    return line if len(text) <= _MAX_TEXT else f"{line}..."
