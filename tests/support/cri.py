"""Pods by containerd's CRI plugin, as a kubelet has them; with defaults for what a test does not care about.

Reference: the container runtime interface, runtime.v1 (`kata/protocols/cri.proto` has the part that is used).
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
from tests.support.cni import PLUGINS, Network
from tests.support.containerd import CriOptions, PrivateContainerd
from tests.support.images import busybox_archive
from tests.support.waiting import eventually

#: The image of a pod's own container.
_PAUSE = "docker.io/library/pause:latest"
_SERVICES = ("RuntimeService", "ImageService")
_TIMEOUT_S = 120.0
_CHANNELS = Subprotocol("v4.channel.k8s.io")


@dataclass(frozen=True)
class Done:
    """What a command in a container said, and its status."""

    stdout: str
    stderr: str
    status: int


class Cri:
    """A connection to the CRI plugin. A context manager, which waits until runtime and network are ready.

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
        """Make a call with the request's fields. Raises grpc.RpcError."""
        rpc = self._rpcs[method]
        request = getattr(pb, rpc.input_type.name)(**fields)
        answer = getattr(pb, rpc.output_type.name)
        call = self._channel.unary_unary(
            f"/{rpc.containing_service.full_name}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=_TIMEOUT_S)

    def _wait_ready(self, timeout: float = 20.0) -> None:
        """Wait until runtime and network are ready."""
        eventually(
            lambda: self.call("Status").status.conditions,
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
        given = {"hostname": name, "linux": pb.LinuxPodSandboxConfig(), **fields}
        config = pb.PodSandboxConfig(metadata=metadata, log_directory=str(logs), **given)
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
        """IP addresses, the first one first."""
        network = self._cri.call("PodSandboxStatus", pod_sandbox_id=self.id).status.network
        return [network.ip, *(one.ip for one in network.additional_ips)]

    @contextmanager
    def forward(self, port: int) -> Iterator[Forwarded]:
        """A connection to a port of the pod by way of containerd's streaming server, as a kubelet makes it."""
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
        """A container that is not started; `fields` are further ones of ContainerConfig.

        Without a command it sleeps, or, if it has an image of its own, does what that says.
        """
        self._made += 1
        security = security or pb.LinuxContainerSecurityContext()
        # The kubelet's choice for a pod that says nothing.
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
        """A started container; options as `create`."""
        container = self.create(*command, **options)
        container.start()
        return container

    def output(self, *command: str, **options: Any) -> str:
        """What a container that runs `command` to its end writes; it has to end with 0, and is removed."""
        container = self.run(*command, **options)
        status = container.wait()
        log = container.log()
        container.remove()
        assert status.exit_code == 0, (status, log)
        return log


class Channels:
    """Kubernetes' channels over a WebSocket: the first byte of each message is a channel's number."""

    def __init__(self, websocket: Connection) -> None:
        self._websocket = websocket

    def send(self, channel: int, data: bytes) -> None:
        self._websocket.send(bytes([channel]) + data)

    def receive(self) -> tuple[int, bytes]:
        """The next message's channel and content; those without content are passed over."""
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
        """At least so many bytes. Raises ConnectionError with the error's text."""
        data = b""
        while len(data) < size:
            channel, piece = self._channels.receive()
            if channel:
                raise ConnectionError(piece.decode(errors="replace"))
            data += piece
        return data


class Attached:
    """A container's streams: channel 0 for its input, 1 and 2 for its output and errors, 3 for what goes wrong."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    def send(self, data: bytes) -> None:
        self._channels.send(0, data)

    def receive(self, size: int) -> tuple[bytes, bytes]:
        """So many bytes in all, of output and errors."""
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
        """Ask it to end, and kill it after `timeout` seconds."""
        self._cri.call("StopContainer", container_id=self.id, timeout=timeout)

    def remove(self) -> None:
        self._cri.call("RemoveContainer", container_id=self.id)

    @property
    def status(self) -> pb.ContainerStatus:
        found: pb.ContainerStatus = self._cri.call("ContainerStatus", container_id=self.id).status
        return found

    def wait(self, timeout: float = 60.0) -> pb.ContainerStatus:
        """Its status once it has ended."""
        return eventually(
            lambda: self.status,
            "the container's end",
            lambda status: status.state == pb.CONTAINER_EXITED,
            within_s=timeout,
        )

    def exec(self, *command: str, timeout: int = 30) -> Done:
        """Run a command in it to its end. Raises grpc.RpcError, DEADLINE_EXCEEDED for one."""
        answer = self._cri.call("ExecSync", container_id=self.id, cmd=command, timeout=timeout)
        return Done(answer.stdout.decode(errors="replace"), answer.stderr.decode(errors="replace"), answer.exit_code)

    @contextmanager
    def attach(self) -> Iterator[Attached]:
        """Its streams by way of containerd's streaming server, as a kubelet gets them; it has to have an input."""
        url = self._cri.call("Attach", container_id=self.id, stdin=True, stdout=True, stderr=True).url
        with _channels(url) as channels:
            yield Attached(channels)

    def sh(self, script: str) -> str:
        """What a shell script in it writes; it has to end with 0."""
        done = self.exec("sh", "-c", script)
        assert done.status == 0, done
        return done.stdout

    def update(self, **limits: Any) -> None:
        """Change limits, fields of LinuxContainerResources."""
        self._cri.call("UpdateContainerResources", container_id=self.id, linux=pb.LinuxContainerResources(**limits))

    def stats(self) -> pb.ContainerStats:
        found: pb.ContainerStats = self._cri.call("ContainerStats", container_id=self.id).stats
        return found

    def wait_log(self, text: str, timeout: float = 30.0) -> None:
        """Wait until it has written a text."""
        eventually(self.log, f"{text!r} in the log", lambda log: text in log, within_s=timeout)

    def log(self) -> str:
        """What it has written, from the log that a kubelet would read: "TIME STREAM TAG TEXT" a line."""
        text = ""
        for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines():
            _, _, tag, said = line.split(" ", 3)
            text += said + ("\n" if tag == "F" else "")
        return text


@contextmanager
def pod_containerd(
    network: Network, directory: Path, *, plugins: Path = PLUGINS, **options: Any
) -> Iterator[PrivateContainerd]:
    """A containerd that makes pods on a network, with the images that `Cri` wants of it.

    Args:
        plugins: directory of the CNI plugins.
        directory: for the images and the network's configuration.
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
