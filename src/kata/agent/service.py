"""The RPCs of Kata's agent protocol (agent.proto): request in, one call, response out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from kata.agent import files, filesystem, guest, iptables, network, stats
from kata.agent.container import Container
from kata.agent.context import AgentContext
from kata.agent.guest_processes import GuestProcesses
from kata.agent.loopback import LOOPBACK, Loopback
from kata.agent.metrics import Metrics
from kata.agent.process import Process
from kata.agent.routing import Routing, list_routes
from kata.agent.sandbox import Sandbox
from kata.errors import Code, FailedPrecondition, InvalidArgument, KataError
from kata.linux.swap import swapon
from kata.log_fields import ForContainer
from kata.loop.off import off_loop
from kata.oci import convert
from kata.oci.ids import validate_id
from kata.protocols import agent_pb2 as pb
from kata.protocols import csi_pb2, health_pb2, processes, types_pb2
from kata.ttrpc import CallContext, Handler
from kata.ttrpc.context import Answer
from kata.ttrpc.typed import handlers
from kata.ttrpc.wire import varint
from kata.version import VERSION

log = logging.getLogger(__name__)

# Kata's agents return this version of the RPC interface, which has never changed.
_GRPC_VERSION = "0.0.1"


class HealthService:
    """grpc.Health."""

    async def check(self, request: health_pb2.CheckRequest, ctx: CallContext) -> health_pb2.HealthCheckResponse:
        """Health.Check: always SERVING. An agent that hangs does not answer."""
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def version(self, request: health_pb2.CheckRequest, ctx: CallContext) -> health_pb2.VersionCheckResponse:
        """Health.Version: the version of the RPC interface and of this agent."""
        return health_pb2.VersionCheckResponse(grpc_version=_GRPC_VERSION, agent_version=VERSION)


class AgentService:
    """grpc.AgentService. RPCs that are not here are answered with UNIMPLEMENTED.

    Docstrings name the gRPC codes that callers have to expect; any RPC on a container or process that does not exist
    returns NOT_FOUND.

    Args:
        sandbox: has the containers.
        agent: what they use.
        is_init: whether this agent is PID 1, and may change the guest's configuration.
        stopped: set when the sandbox has been destroyed.
    """

    def __init__(self, sandbox: Sandbox, agent: AgentContext, is_init: bool, stopped: asyncio.Event) -> None:
        self._sandbox = sandbox
        self._agent = agent
        self._owns_guest = is_init
        self._stopped = stopped
        self._metrics = Metrics()
        self._routing = Routing()
        self._loopback = Loopback()
        self._guest = GuestProcesses(agent, sandbox.container)

    def _container(self, request: Any) -> Container:
        return self._sandbox.container(request.container_id)

    def _table(self, request: Any) -> Container | GuestProcesses:
        """Whose process a request is about: a container's, or the guest's own if it names none."""
        return self._container(request) if request.container_id else self._guest

    def _process(self, request: Any) -> Process:
        return self._table(request).process(request.exec_id)

    def _require_init(self) -> None:
        if not self._owns_guest:
            raise FailedPrecondition("the agent is not PID 1: it must not change the guest's configuration")

    async def create_sandbox(self, request: pb.CreateSandboxRequest, ctx: CallContext) -> Empty:
        """CreateSandbox: mount storages and prepare what containers share. ALREADY_EXISTS if a sandbox runs."""
        await self._sandbox.create(request)
        return Empty()

    async def destroy_sandbox(self, request: pb.DestroySandboxRequest, ctx: CallContext) -> Empty:
        """DestroySandbox: kill all processes and flush; the agent ends then. DEADLINE_EXCEEDED: not all is flushed."""
        try:
            await (self._sandbox.halt() if self._owns_guest else self._sandbox.destroy())
        finally:
            self._stopped.set()
        return Empty()

    async def create_container(self, request: pb.CreateContainerRequest, ctx: CallContext) -> Empty:
        """CreateContainer: all or nothing. ALREADY_EXISTS; NOT_FOUND: the program; FAILED_PRECONDITION: no sandbox."""
        spec: Mapping[str, Any] = convert.from_proto(request.OCI)
        await self._sandbox.create_container(
            request.container_id, spec, list(request.storages), request.devices, request.sandbox_pidns
        )
        return Empty()

    async def start_container(self, request: pb.StartContainerRequest, ctx: CallContext) -> Empty:
        """StartContainer: run the program. FAILED_PRECONDITION if it was started before, or has ended."""
        await self._container(request).start()
        return Empty()

    async def remove_container(self, request: pb.RemoveContainerRequest, ctx: CallContext) -> Empty:
        """RemoveContainer: kill and remove it. DEADLINE_EXCEEDED if its init process survives SIGKILL."""
        await self._sandbox.remove_container(request.container_id, request.timeout)
        return Empty()

    async def exec_process(self, request: pb.ExecProcessRequest, ctx: CallContext) -> Empty:
        """ExecProcess: run one more process in a container; without a container's id, in the guest itself.

        Raises:
            InvalidArgument: no process, or an invalid id.
            AlreadyExists: a running process has the id.
            NotFound: the container or the program does not exist.
            FailedPrecondition: the container is not running.
        """
        if not request.HasField("process") or not request.process.Args:
            raise InvalidArgument(f"exec in container {request.container_id} has no process")
        exec_id = validate_id(request.exec_id, "exec id")
        await self._table(request).exec(exec_id, convert.process_from_proto(request.process))
        return Empty()

    async def signal_process(self, request: pb.SignalProcessRequest, ctx: CallContext) -> Empty:
        """SignalProcess: send a signal. NOT_FOUND also for a process that has ended."""
        self._table(request).signal(request.exec_id, request.signal)
        return Empty()

    async def wait_process(self, request: pb.WaitProcessRequest, ctx: CallContext) -> pb.WaitProcessResponse:
        """WaitProcess: wait for the exit code, 128 + n for signal n."""
        return pb.WaitProcessResponse(status=await self._table(request).wait(request.exec_id))

    async def update_container(self, request: pb.UpdateContainerRequest, ctx: CallContext) -> Empty:
        """UpdateContainer: set limits. FAILED_PRECONDITION if it is stopped; INTERNAL if crun fails."""
        await self._container(request).update(convert.resources_from_proto(request.resources))
        return Empty()

    async def stats_container(self, request: pb.StatsContainerRequest, ctx: CallContext) -> pb.StatsContainerResponse:
        """StatsContainer: figures of the container's cgroup."""
        return stats.read(self._container(request).cgroup)

    async def pause_container(self, request: pb.PauseContainerRequest, ctx: CallContext) -> Empty:
        """PauseContainer: freeze it. FAILED_PRECONDITION if not running; DEADLINE_EXCEEDED if it does not freeze."""
        await self._container(request).pause()
        return Empty()

    async def resume_container(self, request: pb.ResumeContainerRequest, ctx: CallContext) -> Empty:
        """ResumeContainer: thaw it. FAILED_PRECONDITION if it is not paused; DEADLINE_EXCEEDED if it does not thaw."""
        await self._container(request).resume()
        return Empty()

    async def write_stdin(self, request: pb.WriteStreamRequest, ctx: CallContext) -> pb.WriteStreamResponse:
        """WriteStdin: write to standard input; no data closes it. FAILED_PRECONDITION if it is closed."""
        stdio = self._process(request).stdio
        if not request.data:
            await stdio.close_stdin()
        elif stdio.stdin:
            await stdio.stdin.write(request.data)
        return pb.WriteStreamResponse(len=len(request.data))

    async def close_stdin(self, request: pb.CloseStdinRequest, ctx: CallContext) -> Empty:
        """CloseStdin: close standard input, but keep a terminal open. Idempotent."""
        await self._process(request).stdio.close_stdin()
        return Empty()

    async def tty_win_resize(self, request: pb.TtyWinResizeRequest, ctx: CallContext) -> Empty:
        """TtyWinResize: set the size of the process's terminal. UNAVAILABLE if it has none."""
        self._process(request).stdio.resize(request.row, request.column)
        return Empty()

    async def get_oom_event(self, request: pb.GetOOMEventRequest, ctx: CallContext) -> pb.OOMEvent:
        """GetOOMEvent: wait for the next container of which the OOM killer has killed a process."""
        return pb.OOMEvent(container_id=await self._agent.oom.next())

    async def update_interface(self, request: pb.UpdateInterfaceRequest, ctx: CallContext) -> types_pb2.Interface:
        """UpdateInterface: find and configure one. INVALID_ARGUMENT; DEADLINE_EXCEEDED if it does not appear."""
        self._require_init()
        if request.interface.name == LOOPBACK:
            return self._loopback.update(request.interface)
        return await network.update_interface(request.interface, self._agent.devices)

    async def update_routes(self, request: pb.UpdateRoutesRequest, ctx: CallContext) -> pb.Routes:
        """UpdateRoutes: replace routes and rules. INVALID_ARGUMENT; FAILED_PRECONDITION if the kernel refuses."""
        self._require_init()
        return self._routing.update(request.routes)

    async def list_interfaces(self, request: pb.ListInterfacesRequest, ctx: CallContext) -> pb.Interfaces:
        """ListInterfaces: all interfaces, loopback included."""
        return network.list_interfaces()

    async def list_routes(self, request: pb.ListRoutesRequest, ctx: CallContext) -> pb.Routes:
        """ListRoutes: the routes of the main table."""
        return list_routes()

    async def add_arp_neighbors(self, request: pb.AddARPNeighborsRequest, ctx: CallContext) -> Empty:
        """AddARPNeighbors: add static neighbours. INVALID_ARGUMENT; FAILED_PRECONDITION if the kernel refuses."""
        self._require_init()
        network.add_neighbours(request.neighbors)
        return Empty()

    async def get_ip_tables(self, request: pb.GetIPTablesRequest, ctx: CallContext) -> pb.GetIPTablesResponse:
        """GetIPTables: all tables, as iptables-save(8) prints them. FAILED_PRECONDITION without the program."""
        return pb.GetIPTablesResponse(data=await iptables.save(self._agent.reaper, ipv6=request.is_ipv6))

    async def set_ip_tables(self, request: pb.SetIPTablesRequest, ctx: CallContext) -> pb.SetIPTablesResponse:
        """SetIPTables: replace tables, all or nothing. INVALID_ARGUMENT if iptables-restore(8) rejects them."""
        self._require_init()
        said = await iptables.restore(self._agent.reaper, request.data, ipv6=request.is_ipv6)
        return pb.SetIPTablesResponse(data=said)

    async def copy_file(self, request: pb.CopyFileRequest, ctx: CallContext) -> Empty:
        """CopyFile: write a file, or a chunk of one, below the shared directory. INVALID_ARGUMENT for other paths."""
        await off_loop(files.copy, request, self._agent.paths.shared)
        return Empty()

    async def get_volume_stats(self, request: pb.VolumeStatsRequest, ctx: CallContext) -> csi_pb2.VolumeStatsResponse:
        """GetVolumeStats: bytes and inodes of a storage. NOT_FOUND if nothing is mounted there."""
        with self._sandbox.storages.at(request.volume_guest_path) as path:
            return await off_loop(filesystem.stats, path)

    async def resize_volume(self, request: pb.ResizeVolumeRequest, ctx: CallContext) -> Empty:
        """ResizeVolume: grow a file system to its disk. DEADLINE_EXCEEDED if that does not grow; UNIMPLEMENTED."""
        with self._sandbox.storages.at(request.volume_guest_path) as path:
            await filesystem.grow(path, request.size, self._agent.config.hotplug_timeout)
        return Empty()

    async def add_swap(self, request: pb.AddSwapRequest, ctx: CallContext) -> Empty:
        """AddSwap: swap to the disk at a PCI path. DEADLINE_EXCEEDED if it does not appear."""
        self._require_init()
        path = "/".join(f"{slot:02x}" for slot in request.PCIPath)
        await off_loop(_swap_to, await self._agent.devices.disk("blk", path))
        return Empty()

    async def add_swap_path(self, request: pb.AddSwapPathRequest, ctx: CallContext) -> Empty:
        """AddSwapPath: swap to a disk by its device node. DEADLINE_EXCEEDED if it does not appear."""
        self._require_init()
        await off_loop(_swap_to, await self._agent.devices.disk("mmioblk", request.path))
        return Empty()

    async def get_guest_details(self, request: pb.GuestDetailsRequest, ctx: CallContext) -> pb.GuestDetailsResponse:
        """GetGuestDetails: sizes of memory blocks, and what the agent supports."""
        return guest.details(request, self._sandbox.storages.drivers, self._owns_guest)

    async def reseed_random_dev(self, request: pb.ReseedRandomDevRequest, ctx: CallContext) -> Empty:
        """ReseedRandomDev: feed the kernel's random number generator. INVALID_ARGUMENT for no or too much data."""
        guest.reseed(request.data)
        return Empty()

    async def set_guest_date_time(self, request: pb.SetGuestDateTimeRequest, ctx: CallContext) -> Empty:
        """SetGuestDateTime: set the clock. INVALID_ARGUMENT for what is no time."""
        self._require_init()
        guest.set_time(request.Sec, request.Usec)
        return Empty()

    async def online_cpu_mem(self, request: pb.OnlineCPUMemRequest, ctx: CallContext) -> Empty:
        """OnlineCPUMem: take hot-plugged vCPUs and memory into use. DEADLINE_EXCEEDED if they do not appear."""
        self._require_init()
        timeout = self._agent.config.hotplug_timeout if request.wait else 0.0
        await guest.online(request.nb_cpus, not request.cpu_only, timeout)
        # Memory that has been unplugged is not announced: the host asks for no vCPUs then.
        self._agent.reserve.refresh()
        return Empty()

    async def get_metrics(self, request: pb.GetMetricsRequest, ctx: CallContext) -> pb.Metrics:
        """GetMetrics: figures of guest and agent in Prometheus' text format."""
        return pb.Metrics(metrics=self._metrics.render())

    def reader(self, stream: str) -> Handler:
        """Make the handler of ReadStdout or ReadStderr, in which no data means the end.

        The response, ReadStreamResponse{data=1}, is encoded by hand in two pieces: in an emulated guest each copy of
        the output takes a third of the call's time.

        Args:
            stream: "stdout" or "stderr".
        """

        async def read(ctx: CallContext, payload: bytes) -> Answer:
            try:
                request = pb.ReadStreamRequest.FromString(payload)
            except DecodeError as error:
                raise InvalidArgument("malformed ReadStreamRequest") from error
            data = await self._table(request).read(request.exec_id, stream, request.len)
            return (b"\x0a" + varint(len(data)), data) if data else b""

        return read

    async def drained(self, ctx: CallContext, payload: bytes) -> Answer:
        """The handler of `kata.protocols.processes.DRAINED`."""
        request = _process_of(payload)
        await self._table(request).drained(request.exec_id)
        return b""

    async def release(self, ctx: CallContext, payload: bytes) -> Answer:
        """The handler of `kata.protocols.processes.RELEASE`."""
        request = _process_of(payload)
        self._table(request).release(request.exec_id)
        return b""

    async def list_processes(self, ctx: CallContext, payload: bytes) -> Answer:
        """The handler of `kata.protocols.processes.LIST`."""
        return processes.encode_list(self._container(_process_of(payload)).processes())


def _process_of(payload: bytes) -> pb.WaitProcessRequest:
    """The process that a request of `kata.protocols.processes` names.

    Raises:
        InvalidArgument: it is not a WaitProcessRequest.
    """
    try:
        return pb.WaitProcessRequest.FromString(payload)
    except DecodeError as error:
        raise InvalidArgument("malformed WaitProcessRequest") from error


def _swap_to(node: str) -> None:
    try:
        swapon(node)
    except OSError as error:
        raise FailedPrecondition(f"cannot swap to {node}: {error.strerror}") from error


def all_handlers(agent: AgentService) -> dict[tuple[str, str], Handler]:
    """Return the handlers of Kata's services and of `kata.protocols.processes`, for a ttrpc server."""
    service = pb.DESCRIPTOR.services_by_name["AgentService"]
    return {
        **handlers(health_pb2.DESCRIPTOR.services_by_name["Health"], HealthService()),
        **handlers(service, ForContainer(agent, "container_id")),
        (service.full_name, "ReadStdout"): agent.reader("stdout"),
        (service.full_name, "ReadStderr"): agent.reader("stderr"),
        (processes.SERVICE, processes.DRAINED): agent.drained,
        (processes.SERVICE, processes.RELEASE): agent.release,
        (processes.SERVICE, processes.LIST): agent.list_processes,
    }


def to_status(error: Exception) -> tuple[int, str]:
    """Return gRPC code and text for a failed call. For an unexpected error the text has the chain of causes."""
    if isinstance(error, KataError) and error.code != Code.INTERNAL:
        return error.code, str(error)
    texts = []
    link: BaseException | None = error
    while link is not None:
        texts.append(str(link) if isinstance(link, KataError) else f"{type(link).__name__}: {link}")
        link = link.__cause__
    return (error.code if isinstance(error, KataError) else Code.INTERNAL), ": ".join(texts)
