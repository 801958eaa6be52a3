"""A running sandbox as commands see it: what it tells of itself, its containers, its agent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kata.cli.management import directory_of
from kata.errors import InvalidArgument, NotFound, Unavailable
from kata.management.client import request
from kata.ttrpc import Client

#: Seconds for the sandbox to answer.
_ANSWER_TIMEOUT_S = 10.0


class RunningSandbox:
    """One sandbox.

    Args:
        sandbox: id, or name of a state directory.

    Raises:
        InvalidArgument: the id is invalid, or ambiguous.
    """

    def __init__(self, sandbox: str) -> None:
        self._directory = directory_of(sandbox)

    @property
    def name(self) -> str:
        """The name of its state directory."""
        return self._directory.name

    async def ask(self, path: str, **query: str) -> Any:
        """The answer in JSON to a GET of a path on its management socket. Raises KataError."""
        return json.loads(await request(self._directory, "GET", path, query=query, timeout=_ANSWER_TIMEOUT_S))

    async def container(self, wanted: str | None) -> str:
        """The id of the container that is meant; see `choose_container`. Raises KataError."""
        return choose_container(await self.ask("/sandbox"), wanted)

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


def choose_container(sandbox: Mapping[str, Any], wanted: str | None) -> str:
    """The container that is meant: the one with an id that begins so, or the one that is not the pod's own.

    Args:
        sandbox: what it tells of itself.
        wanted: an id, or its beginning; None if none was named.

    Raises:
        NotFound: there is none.
        InvalidArgument: there are several.
    """
    ids = [str(container["id"]) for container in sandbox["containers"]]
    if wanted is not None:
        if wanted in ids:
            return wanted
        found = [name for name in ids if wanted and name.startswith(wanted)]
        if not found:
            raise NotFound(f"sandbox {sandbox['id']} has no container {wanted}", hint=_those(ids))
    else:
        running = [str(one["id"]) for one in sandbox["containers"] if one["state"] in ("running", "paused")]
        if not running:
            raise NotFound(f"no container of sandbox {sandbox['id']} runs", hint="`kata inspect` says more")
        found = [name for name in running if name != sandbox["id"]] or running
    if len(found) > 1:
        raise InvalidArgument(f"sandbox {sandbox['id']} has several containers", hint=_those(found))
    return found[0]


def _those(ids: Sequence[str]) -> str:
    return f"name one of {', '.join(ids)}" if ids else "it has no container"
