"""Ask a running sandbox something, over the socket in its state directory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from kata.errors import NotFound, from_code
from kata.oci.ids import validate_id
from kata.protocols import management_pb2
from kata.runtime.ledger.journal import STATE_ROOT
from kata.runtime.sandbox.management import SOCKET
from kata.ttrpc import Client, StatusError
from kata.ttrpc.typed import Stub

_TIMEOUT_S = 90.0


def ask(sandbox_id: str, service: str, method: str, request: Any) -> Any:
    """Make one call of a service of management.proto.

    Raises:
        InvalidArgument: no id.
        NotFound: no such sandbox runs.
        KataError: what the sandbox says.
    """
    return asyncio.run(_ask(validate_id(sandbox_id, "sandbox id"), service, method, request))


async def _ask(sandbox_id: str, service: str, method: str, request: Any) -> Any:
    try:
        client = await Client.connect_unix(str(Path(STATE_ROOT) / sandbox_id / SOCKET))
    except OSError as error:
        raise NotFound(f"no sandbox {sandbox_id} runs here", hint="`ls /run/kata` shows those that do") from error
    async with client:
        try:
            stub = Stub(client, management_pb2.DESCRIPTOR.services_by_name[service])
            return await stub.call(method, request, timeout=_TIMEOUT_S)
        except StatusError as error:
            raise from_code(error.code, error.message) from error
