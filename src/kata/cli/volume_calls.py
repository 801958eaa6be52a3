"""What `kata direct-volume` asks the sandbox that has a volume."""

from __future__ import annotations

from typing import Any

from kata.cli.management_client import ask
from kata.errors import NotFound
from kata.protocols import management_pb2
from kata.runtime.storage import direct_volume


def stats(volume_path: str) -> dict[str, Any]:
    """How full a volume is, in the form of Kata's.

    Raises:
        NotFound: no sandbox has it.
        KataError: what the sandbox says.
    """
    answer = _ask(volume_path, "Stats", management_pb2.VolumeRequest(volume_path=volume_path))
    usage = [
        {"available": one.available, "total": one.total, "used": one.used, "unit": one.unit} for one in answer.usage
    ]
    condition = answer.volume_condition
    return {"usage": usage, "volume_condition": {"abnormal": condition.abnormal, "message": condition.message}}


def resize(volume_path: str, size: int) -> None:
    """Have a volume take all of its disk, which has grown to `size` bytes. Raises as `stats`."""
    request = management_pb2.ResizeVolumeRequest(volume_path=volume_path, size=size)
    _ask(volume_path, "Resize", request)


def _ask(volume_path: str, method: str, request: Any) -> Any:
    """Ask the sandbox that has the volume, which is the first that answers."""
    for sandbox_id in direct_volume.users(volume_path):
        try:
            return ask(sandbox_id, "Volumes", method, request)
        except NotFound:
            continue  # it has ended
    raise NotFound(f"no sandbox has the direct volume {volume_path}")
