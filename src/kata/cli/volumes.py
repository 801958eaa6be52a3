"""What `kata direct-volume` asks the sandbox that has a volume."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from kata.errors import NotFound, from_code
from kata.protocols import management_pb2
from kata.sandbox.ledger import STATE_ROOT
from kata.sandbox.volumes import SOCKET
from kata.storage import direct
from kata.ttrpc import Client, StatusError
from kata.ttrpc.typed import Stub

_SERVICE = management_pb2.DESCRIPTOR.services_by_name["Volumes"]
_TIMEOUT_S = 60.0


def stats(volume_path: str) -> dict[str, Any]:
    """How full a volume is, in the form of Kata's.

    Raises:
        NotFound: no sandbox has it.
        KataError: what the sandbox says.
    """
    answer = asyncio.run(_ask(volume_path, "Stats", management_pb2.VolumeRequest(volume_path=volume_path)))
    usage = [
        {"available": one.available, "total": one.total, "used": one.used, "unit": one.unit} for one in answer.usage
    ]
    condition = answer.volume_condition
    return {"usage": usage, "volume_condition": {"abnormal": condition.abnormal, "message": condition.message}}


def resize(volume_path: str, size: int) -> None:
    """Have a volume take all of its disk, which has grown to `size` bytes. Raises as `stats`."""
    request = management_pb2.ResizeVolumeRequest(volume_path=volume_path, size=size)
    asyncio.run(_ask(volume_path, "Resize", request))


async def _ask(volume_path: str, method: str, request: Any) -> Any:
    """Ask the sandbox that has the volume, which is the first that answers."""
    for sandbox_id in direct.users(volume_path):
        try:
            client = await Client.connect_unix(str(Path(STATE_ROOT) / sandbox_id / SOCKET))
        except OSError:
            continue  # it has ended
        async with client:
            try:
                return await Stub(client, _SERVICE).call(method, request, timeout=_TIMEOUT_S)
            except StatusError as error:
                raise from_code(error.code, error.message) from error
    raise NotFound(f"no sandbox has the direct volume {volume_path}")
