"""containerd's Tasks service, for what `ctr` cannot do: it never creates a task without starting it.

Reference: containerd, api/services/tasks/v1/tasks.proto. Requests whose fields have the same numbers as those of the
shim's Task service are those messages.
"""

from __future__ import annotations

from pathlib import Path

import grpc

from kata.protocols.containerd import task_v2_pb2
from kata.ttrpc.wire import varint

_SERVICE = "containerd.services.tasks.v1.Tasks"
_TIMEOUT_S = 60.0


class Tasks:
    """A client. A context manager.

    Args:
        address: containerd's socket.
        namespace: containerd's, of all tasks.
    """

    def __init__(self, address: Path, namespace: str) -> None:
        self._channel = grpc.insecure_channel(f"unix://{address}")
        self._metadata = (("containerd-namespace", namespace),)

    def __enter__(self) -> Tasks:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def create(self, container_id: str, stdout: Path, stderr: Path) -> None:
        """Create the task of a container that has its rootfs in its spec. Raises grpc.RpcError."""
        self._call("Create", _text(1, container_id) + _text(5, str(stdout)) + _text(6, str(stderr)))

    def kill(self, container_id: str, number: int) -> None:
        """Send a signal. Raises grpc.RpcError."""
        self._call("Kill", task_v2_pb2.KillRequest(id=container_id, signal=number).SerializeToString())

    def wait(self, container_id: str) -> int:
        """Wait for the exit; return the status. Raises grpc.RpcError."""
        request = task_v2_pb2.WaitRequest(id=container_id)
        answer = task_v2_pb2.WaitResponse.FromString(self._call("Wait", request.SerializeToString()))
        return answer.exit_status

    def delete(self, container_id: str) -> None:
        """Delete the task. Raises grpc.RpcError."""
        self._call("Delete", task_v2_pb2.DeleteRequest(id=container_id).SerializeToString())

    def _call(self, method: str, request: bytes) -> bytes:
        # Without serializers a message is its bytes.
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(f"/{_SERVICE}/{method}")
        return call(request, timeout=_TIMEOUT_S, metadata=self._metadata)


def _text(number: int, value: str) -> bytes:
    data = value.encode()
    return varint(number << 3 | 2) + varint(len(data)) + data
