"""Requests of commands to a running sandbox, by its name (docs/reference/management.md)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kata.cli.naming import resolve_sandbox
from kata.cli.root import require_root
from kata.errors import NotFound
from kata.management.client import request
from kata.runtime.storage import direct_volume

_TIMEOUT_S = 90.0


def directory_of(sandbox: str) -> Path:
    """The state directory of a sandbox of this host; see `naming.resolve_sandbox`, which this is for root.

    Raises:
        PermissionDenied: this is not root.
        InvalidArgument: the name is invalid, ambiguous, or a container's.
        NotFound: no sandbox is that pod's.
    """
    require_root("what a sandbox is asked")
    return resolve_sandbox(sandbox)


def call(
    sandbox: str,
    method: str,
    path: str,
    *,
    query: Mapping[str, str] | None = None,
    body: bytes = b"",
    timeout: float = _TIMEOUT_S,
) -> bytes:
    """Make one request and return the answer's body.

    Args:
        sandbox: its name, as `naming.resolve_sandbox` takes it.
        method: of HTTP.
        path: on its management socket.
        query: fields of the query.
        body: of the request.
        timeout: seconds.

    Raises:
        InvalidArgument: the name is invalid, or ambiguous.
        NotFound: the sandbox does not run, or answers with this error.
        KataError: any other error that the sandbox answers with.
    """
    return asyncio.run(request(directory_of(sandbox), method, path, query=query, body=body, timeout=timeout))


def volume_stats(volume_path: str) -> dict[str, Any]:
    """Return a direct volume's usage, in the JSON form of `kata-runtime direct-volume stats`.

    Raises:
        InvalidArgument: the path is not absolute, or too long.
        NotFound: no sandbox uses the volume.
        KataError: any other error that the sandbox returns.
    """
    found: dict[str, Any] = json.loads(
        _call_user(volume_path, "GET", "/direct-volume/stats", query={"path": volume_path})
    )
    return found


def resize_volume(volume_path: str, size: int) -> None:
    """Grow a direct volume's file system to its disk, which has grown to `size` bytes.

    Raises:
        InvalidArgument: the path is not absolute, or too long.
        NotFound: no sandbox uses the volume.
        KataError: any other error that the sandbox returns.
    """
    body = json.dumps({"VolumePath": volume_path, "Size": size}).encode()
    _call_user(volume_path, "POST", "/direct-volume/resize", body=body)


def _call_user(volume_path: str, method: str, path: str, **options: Any) -> bytes:
    """Call the first sandbox that uses the volume and still runs.

    Raises:
        NotFound: no sandbox uses it.
    """
    for sandbox in direct_volume.users(volume_path):
        try:
            return call(sandbox, method, path, **options)
        except NotFound:
            continue  # it has ended
    raise NotFound(f"no sandbox uses the direct volume {volume_path}")
