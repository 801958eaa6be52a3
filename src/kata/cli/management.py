"""Calls to a running sandbox, over the management socket in its state directory (management.proto)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from kata.errors import NotFound, from_code
from kata.protocols import management_pb2
from kata.runtime.ledger.journal import STATE_ROOT
from kata.runtime.ledger.names import find
from kata.runtime.sandbox.management import SOCKET
from kata.runtime.storage import direct_volume
from kata.ttrpc import Client, StatusError
from kata.ttrpc.typed import Stub

_CALL_TIMEOUT_S = 90.0


def call(sandbox_id: str, service: str, method: str, request: Any) -> Any:
    """Make one call and return the response.

    Args:
        sandbox_id: the sandbox's id.
        service: a service of management.proto, without its package.
        method: a method of the service.
        request: the method's request message.

    Raises:
        InvalidArgument: the id is invalid, or ambiguous.
        NotFound: the sandbox does not run, or returns this error.
        KataError: any other error that the sandbox returns.
    """
    name = find(sandbox_id, STATE_ROOT)
    return asyncio.run(ask(Path(STATE_ROOT) / name, service, method, request, timeout=_CALL_TIMEOUT_S))


async def ask(directory: Path, service: str, method: str, request: Any, *, timeout: float) -> Any:
    """As `call`, for the sandbox of a state directory and within so many seconds.

    Raises:
        NotFound: the sandbox does not run, or returns this error.
        KataError: any other error that the sandbox returns.
    """  # noqa: DOC501 - `from_code` makes a KataError
    try:
        client = await Client.connect_unix(str(directory / SOCKET))
    except OSError as error:
        raise NotFound(f"sandbox {directory.name} is not running", hint="`kata list` shows all sandboxes") from error
    async with client:
        try:
            stub = Stub(client, management_pb2.DESCRIPTOR.services_by_name[service])
            return await stub.call(method, request, timeout=timeout)
        except StatusError as error:
            raise from_code(error.code, error.message) from error


def volume_stats(volume_path: str) -> dict[str, Any]:
    """Return a direct volume's usage, in the JSON form of `kata-runtime direct-volume stats`.

    Raises:
        InvalidArgument: the path is not absolute, or too long.
        NotFound: no sandbox uses the volume.
        KataError: any other error that the sandbox returns.
    """
    response = _call_user(volume_path, "Stats", management_pb2.VolumeRequest(volume_path=volume_path))
    usage = [
        {"available": one.available, "total": one.total, "used": one.used, "unit": one.unit} for one in response.usage
    ]
    condition = response.volume_condition
    return {"usage": usage, "volume_condition": {"abnormal": condition.abnormal, "message": condition.message}}


def resize_volume(volume_path: str, size: int) -> None:
    """Grow a direct volume's file system to its disk, which has grown to `size` bytes.

    Raises:
        InvalidArgument: the path is not absolute, or too long.
        NotFound: no sandbox uses the volume.
        KataError: any other error that the sandbox returns.
    """
    _call_user(volume_path, "Resize", management_pb2.ResizeVolumeRequest(volume_path=volume_path, size=size))


def _call_user(volume_path: str, method: str, request: Any) -> Any:
    """Call the first sandbox that uses the volume and still runs.

    Raises:
        NotFound: no sandbox uses it.
    """
    for sandbox_id in direct_volume.users(volume_path):
        try:
            return call(sandbox_id, "Volumes", method, request)
        except NotFound:
            continue  # it has ended
    raise NotFound(f"no sandbox uses the direct volume {volume_path}")
