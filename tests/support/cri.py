"""Pods through containerd's CRI plugin, as a kubelet makes them, with defaults for what a test does not set.

Reference: the Container Runtime Interface, runtime.v1 (`kata/protocols/cri.proto` has the part that is used).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from websockets.sync.client import connect
from websockets.sync.connection import Connection
from websockets.typing import Subprotocol

from kata.protocols import cri_pb2 as pb
from tests.support import oracle
from tests.support.cni import PLUGINS, Network
from tests.support.containerd import CriOptions, PrivateContainerd
from tests.support.images import busybox_archive
from tests.support.waiting import eventually

#: The image of a pod's pause container.
_PAUSE = "docker.io/library/pause:latest"
_SERVICES = ("RuntimeService", "ImageService")
_TIMEOUT_S = 120.0
_CHANNELS = Subprotocol("v4.channel.k8s.io")


@dataclass(frozen=True)
class Done:
    """The output of a command in a container, and its exit status."""

    stdout: str
    stderr: str
    status: int


class Cri:
    """A client of the CRI plugin. A context manager, which waits until runtime and network are ready.

    Args:
        address: containerd's socket.
        handler: the runtime handler of all pods.
        image: the image of all containers.
        logs: a directory for the containers' logs.
    """

    def __init__(self, address: Path, handler: str, image: str, logs: Path) -> None:
        self.handler = handler
        self._image = image
        self._logs = logs
        self._channel = grpc.insecure_channel(f"unix://{address}")
        services = [pb.DESCRIPTOR.services_by_name[name] for name in _SERVICES]
        self._rpcs = {rpc.name: rpc for service in services for rpc in service.methods}

    def __enter__(self) -> Cri:
        try:
            self._wait_ready()
        except BaseException:
            self._channel.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: str, **fields: Any) -> Any:
        """Make a call with the request's fields; return the response. Raises grpc.RpcError."""
        rpc = self._rpcs[method]
        request = getattr(pb, rpc.input_type.name)(**fields)
        response = getattr(pb, rpc.output_type.name)
        call = self._channel.unary_unary(
            f"/{rpc.containing_service.full_name}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        return call(request, timeout=_TIMEOUT_S)

    def _wait_ready(self, timeout: float = 20.0) -> None:
        """Wait until runtime and network are ready; containerd listens before its CRI plugin is."""

        def conditions() -> Any:
            try:
                return self.call("Status").status.conditions
            except grpc.RpcError as error:
                if "not initialized yet" in (error.details() or ""):
                    return []
                raise

        eventually(
            conditions,
            "runtime and network",
            lambda conditions: conditions and all(condition.status for condition in conditions),
            within_s=timeout,
        )

    @contextmanager
    def pod(self, name: str, **fields: Any) -> Iterator[Pod]:
        """A running pod, stopped and removed afterwards; `fields` are those of PodSandboxConfig."""
        logs = self._logs / f"{self.handler}-{name}"
        logs.mkdir(exist_ok=True)
        metadata = pb.PodSandboxMetadata(name=name, uid=f"{name}-uid", namespace="test")
        given = {"metadata": metadata, "hostname": name, "linux": pb.LinuxPodSandboxConfig(), **fields}
        config = pb.PodSandboxConfig(log_directory=str(logs), **given)
        sandbox_id = self.call("RunPodSandbox", config=config, runtime_handler=self.handler).pod_sandbox_id
        try:
            yield Pod(self, sandbox_id, config, self._image, logs)
        finally:
            self.call("StopPodSandbox", pod_sandbox_id=sandbox_id)
            self.call("RemovePodSandbox", pod_sandbox_id=sandbox_id)


class Pod:
    """A pod and its containers. Made by `Cri.pod`."""

    def __init__(self, cri: Cri, sandbox_id: str, config: pb.PodSandboxConfig, image: str, logs: Path) -> None:
        self.id = sandbox_id
        self._cri = cri
        self._config = config
        self._image = image
        self._logs = logs
        self._made = 0

    @property
    def addresses(self) -> list[str]:
        """IP addresses, the primary one first."""
        network = self._cri.call("PodSandboxStatus", pod_sandbox_id=self.id).status.network
        return [network.ip, *(one.ip for one in network.additional_ips)]

    @contextmanager
    def forward(self, port: int) -> Iterator[Forwarded]:
        """A connection to a port of the pod through containerd's streaming server, as a kubelet makes it."""
        url = self._cri.call("PortForward", pod_sandbox_id=self.id, port=[port]).url
        with _channels(f"{url}?port={port}") as channels:
            yield Forwarded(channels, port)

    def create(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        mounts: Sequence[pb.Mount] = (),
        resources: pb.LinuxContainerResources | None = None,
        security: pb.LinuxContainerSecurityContext | None = None,
        image: str = "",
        **fields: Any,
    ) -> Container:
        """Create a container without starting it.

        Args:
            command: by default the image's command, or sleep for the default image.
            env: environment variables.
            mounts: of the CRI.
            resources: limits.
            security: its security context; by default with a pid namespace of its own.
            image: by default that of `Cri`.
            fields: more fields of ContainerConfig.
        """
        self._made += 1
        security = security or pb.LinuxContainerSecurityContext()
        # The kubelet's default.
        if not security.HasField("namespace_options"):
            security.namespace_options.pid = pb.CONTAINER
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=f"c{self._made}"),
            image=pb.ImageSpec(image=image or self._image),
            command=command or (() if image else ("sleep", "1000")),
            envs=[pb.KeyValue(key=key, value=value) for key, value in (env or {}).items()],
            mounts=mounts,
            log_path=f"{self._made}.log",
            linux=pb.LinuxContainerConfig(
                resources=resources or pb.LinuxContainerResources(), security_context=security
            ),
            **fields,
        )
        container_id = self._cri.call(
            "CreateContainer", pod_sandbox_id=self.id, config=config, sandbox_config=self._config
        ).container_id
        return Container(self._cri, container_id, self._logs / f"{self._made}.log")

    def run(self, *command: str, **options: Any) -> Container:
        """Create and start a container; options as of `create`."""
        container = self.create(*command, **options)
        container.start()
        return container

    def ended(self, *command: str, **options: Any) -> tuple[pb.ContainerStatus, str]:
        """Run `command` in a container to its end; return its status and its output. The container is removed."""
        return oracle.answer(self._cri.handler, lambda: self._ended(*command, **options), lambda ended: ended[1])

    def _ended(self, *command: str, **options: Any) -> tuple[pb.ContainerStatus, str]:
        container = self.run(*command, **options)
        status, log = container.wait(), container.log()
        container.remove()
        return status, log

    def output(self, *command: str, **options: Any) -> str:
        """As `ended`, but only the output; the container has to exit with 0."""
        status, log = self.ended(*command, **options)
        assert status.exit_code == 0, (status, log)
        return log


class Channels:
    """Kubernetes' channels over a WebSocket (v4.channel.k8s.io): a message begins with its channel's number, a byte."""

    def __init__(self, websocket: Connection) -> None:
        self._websocket = websocket

    def send(self, channel: int, data: bytes) -> None:
        self._websocket.send(bytes([channel]) + data)

    def receive(self) -> tuple[int, bytes]:
        """Return the channel and content of the next message that is not empty."""
        while True:
            message = self._websocket.recv(timeout=_TIMEOUT_S)
            assert isinstance(message, bytes)
            if len(message) > 1:
                return message[0], message[1:]


class Forwarded:
    """A forwarded connection: channel 0 for data and 1 for an error."""

    def __init__(self, channels: Channels, port: int) -> None:
        self._channels = channels
        # Each channel begins with the port.
        for channel in range(2):
            assert channels.receive() == (channel, port.to_bytes(2, "little"))

    def send(self, data: bytes) -> None:
        self._channels.send(0, data)

    def receive(self, size: int) -> bytes:
        """Return at least `size` bytes. Raises ConnectionError for a message on the error channel."""
        data = b""
        while len(data) < size:
            channel, piece = self._channels.receive()
            if channel:
                raise ConnectionError(piece.decode(errors="replace"))
            data += piece
        return data


class Attached:
    """A container's streams: channel 0 is standard input, 1 standard output, 2 standard error, and 3 is for errors."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    def send(self, data: bytes) -> None:
        self._channels.send(0, data)

    def receive(self, size: int) -> tuple[bytes, bytes]:
        """Return at least `size` bytes in total, of standard output and standard error."""
        said = {1: b"", 2: b""}
        while sum(map(len, said.values())) < size:
            channel, piece = self._channels.receive()
            if channel == 3:
                raise ConnectionError(piece.decode(errors="replace"))
            said[channel] += piece
        return said[1], said[2]


class Container:
    """A container of a pod. Made by `Pod.create`."""

    def __init__(self, cri: Cri, container_id: str, log: Path) -> None:
        self.id = container_id
        self._cri = cri
        self._log = log

    def start(self) -> None:
        self._cri.call("StartContainer", container_id=self.id)

    def stop(self, timeout: int = 0) -> None:
        """Send its stop signal, and SIGKILL after `timeout` seconds."""
        self._cri.call("StopContainer", container_id=self.id, timeout=timeout)

    def remove(self) -> None:
        self._cri.call("RemoveContainer", container_id=self.id)

    @property
    def status(self) -> pb.ContainerStatus:
        found: pb.ContainerStatus = self._cri.call("ContainerStatus", container_id=self.id).status
        return found

    def wait(self, timeout: float = 60.0) -> pb.ContainerStatus:
        """Wait for its end; return its status."""
        return eventually(
            lambda: self.status,
            "the container's end",
            lambda status: status.state == pb.CONTAINER_EXITED,
            within_s=timeout,
        )

    def exec(self, *command: str, timeout: int = 30) -> Done:
        """Run a command in it to its end. Raises grpc.RpcError, with DEADLINE_EXCEEDED after `timeout` seconds."""
        response = self._cri.call("ExecSync", container_id=self.id, cmd=command, timeout=timeout)
        output, errors = (stream.decode(errors="replace") for stream in (response.stdout, response.stderr))
        return Done(output, errors, response.exit_code)

    @contextmanager
    def attach(self) -> Iterator[Attached]:
        """Its streams through containerd's streaming server, as a kubelet attaches; it needs an open standard input."""
        url = self._cri.call("Attach", container_id=self.id, stdin=True, stdout=True, stderr=True).url
        with _channels(url) as channels:
            yield Attached(channels)

    def sh(self, script: str) -> str:
        """Run a shell script in it and return its output; it has to exit with 0."""
        done = self.exec("sh", "-c", script)
        assert done.status == 0, done
        return done.stdout

    def update(self, **limits: Any) -> None:
        """Set limits: fields of LinuxContainerResources."""
        self._cri.call("UpdateContainerResources", container_id=self.id, linux=pb.LinuxContainerResources(**limits))

    def stats(self) -> pb.ContainerStats:
        found: pb.ContainerStats = self._cri.call("ContainerStats", container_id=self.id).stats
        return found

    def wait_log(self, text: str, timeout: float = 30.0) -> None:
        """Wait until its log contains a text."""
        eventually(self.log, f"{text!r} in the log", lambda log: text in log, within_s=timeout)

    def log(self) -> str:
        """Return its output from the log for a kubelet, with lines of the form "TIME STREAM TAG TEXT"."""
        text = ""
        for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines():
            _, _, tag, said = line.split(" ", 3)
            text += said + ("\n" if tag == "F" else "")
        return text


@contextmanager
def pod_containerd(
    network: Network, directory: Path, *, plugins: Path = PLUGINS, **options: Any
) -> Iterator[PrivateContainerd]:
    """A containerd that makes pods on a network, with the images for `Cri`.

    Args:
        network: of the pods.
        directory: for the images and the network's configuration.
        plugins: directory of the CNI plugins.
        options: more of `PrivateContainerd`.
    """
    networks = directory / "net.d"
    networks.mkdir(parents=True)
    network.write(networks)
    cri = CriOptions(_PAUSE, plugins, networks)
    with PrivateContainerd(namespace="k8s.io", cri=cri, **options) as containerd:
        containerd.import_image(busybox_archive(directory / "busybox.tar"))
        containerd.import_image(busybox_archive(directory / "pause.tar", name=_PAUSE, command=("sleep", "2147483647")))
        yield containerd


@contextmanager
def _channels(url: str) -> Iterator[Channels]:
    with connect(url.replace("http:", "ws:", 1), subprotocols=[_CHANNELS], max_size=None) as websocket:
        yield Channels(websocket)
