"""A running sandbox as commands see it: what it tells of itself, its containers, its agent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kata.cli.naming import choose_container, resolve
from kata.cli.root import require_root
from kata.errors import InvalidArgument, Unavailable
from kata.management.client import request
from kata.ttrpc import Client

#: Seconds for the sandbox to answer.
_ANSWER_TIMEOUT_S = 10.0


class RunningSandbox:
    """One sandbox.

    Args:
        sandbox: a name as `naming.resolve` takes it. Not in an event loop.

    Raises:
        PermissionDenied: this is not root.
        InvalidArgument: the name is invalid, or ambiguous.
        NotFound: no sandbox is that pod's.
    """

    def __init__(self, sandbox: str) -> None:
        require_root("what a sandbox is asked")
        named = resolve(sandbox)
        self._directory = named.directory
        self._container = named.container

    @property
    def name(self) -> str:
        """The name of its state directory."""
        return self._directory.name

    async def ask(self, path: str, **query: str) -> Any:
        """The answer in JSON to a GET of a path on its management socket. Raises KataError."""
        return json.loads(await request(self._directory, "GET", path, query=query, timeout=_ANSWER_TIMEOUT_S))

    async def container(self, wanted: str | None) -> str:
        """The id of the container that is meant, if not by the sandbox's name; see `choose_container`.

        Raises:
            InvalidArgument: both name one, or the name is ambiguous.
            KataError: it cannot be found out.
        """
        if wanted is not None and self._container is not None:
            raise InvalidArgument(f"a container is named twice: {self._container} and {wanted}")
        return choose_container(await self.ask("/sandbox"), self._container if wanted is None else wanted)

    async def act(self, path: str, container: str | None, fields: Mapping[str, int], *, timeout: float) -> None:
        """Have it do something with the container that is meant, or with all if none is named.

        Args:
            path: on its management socket.
            container: as for `container`.
            fields: of the request, beside that one.
            timeout: seconds.

        Raises:
            KataError: it cannot, or there is no such container.
        """
        named = self._container is not None or container is not None
        body = {"container": await self.container(container) if named else None, **fields}
        await request(self._directory, "POST", path, body=json.dumps(body).encode(), timeout=timeout)

    async def agent(self) -> Client:
        """Connect to its agent; the caller closes the connection.

        Raises:
            Unavailable: it has just ended.
            KataError: it does not tell where its agent is.
        """
        url = await request(self._directory, "GET", "/agent-url", timeout=_ANSWER_TIMEOUT_S)
        path = Path(url.decode().removeprefix("unix://"))
        try:
            # Not a path that something else behind the socket could name.
            return await Client.connect_unix(str(self._directory / path.name))
        except OSError as error:
            raise Unavailable(f"sandbox {self.name} has just ended") from error
