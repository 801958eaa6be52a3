"""What kata-monitor answers: Kata's paths, and those of its page."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kata.errors import KataError, NotFound
from kata.loop.off import off_loop
from kata.management.client import request as ask_sandbox
from kata.management.protocol import status_of
from kata.metrics.exposition import CONTENT_TYPE
from kata.monitor import debug, scrape
from kata.monitor.http import Guard, own_names
from kata.monitor.sandboxes import Sandbox, Sandboxes
from kata.monitor.scrape import Scraper
from kata.monitor.viewers import MAX_VIEWERS, Viewers, encoded
from kata.runtime.hypervisor.console import printable

log = logging.getLogger(__name__)

_ANSWER_TIMEOUT_S = 3.0
_MAX_ANSWER = 1 << 20
#: Bytes of an answer that are handed over at a time.
_PIECE = 64 << 10
#: Answers to scrapes that are sent at a time, and seconds that others wait for their turn.
_MAX_SCRAPES = 8
_TURN_TIMEOUT_S = 10.0

_INDEX = """\
kata-monitor: the sandboxes of this host

/                        a page for browsers
/metrics                 metrics of all sandboxes and of kata-monitor; of one: ?sandbox=ID
/sandboxes               ids of all sandboxes
/agent-url?sandbox=ID    where the agent of a sandbox answers
/debug/vars              the state of kata-monitor
/debug/pprof/            its stacks, and its memory if that is traced
"""


class Monitor:
    """The application.

    Args:
        root: the directory of state directories.
        timeout: seconds for a sandbox to answer a scrape.
        names: of this host, besides those that it knows itself.

    Attributes:
        sandboxes: whose `run` the caller runs beside the server.
        app: what is served.
    """

    def __init__(self, root: Path, timeout: float = scrape.TIMEOUT_S, names: Iterable[str] = ()) -> None:
        self._viewers = Viewers()
        self.sandboxes = Sandboxes(root, self._viewers.tell)
        self.sandboxes.watched = lambda: len(self._viewers) > 0
        self._timeout = timeout
        self._scraper = Scraper(self.sandboxes.all, timeout)
        self._turns = asyncio.Semaphore(_MAX_SCRAPES)
        # Found once, so that no name in a request ever becomes a path.
        page = Path(str(files("kata.monitor") / "page"))
        routes = [
            Route("/", self._index),
            Route("/metrics", self._metrics),
            Route("/sandboxes", self._list),
            Route("/agent-url", self._agent_url),
            Route("/debug/vars", self._variables),
            Route("/debug/pprof/{profile:path}", self._profile),
            Route("/sandbox/{name}", _file(page / "index.html")),
            *(Route(f"/page/{path.name}", _file(path)) for path in sorted(page.iterdir()) if path.is_file()),
            Route("/api/stream", self._stream),
            Route("/api/sandboxes/{name}", self._details),
            Route("/api/sandboxes/{name}/console", self._console),
        ]
        self._page = page / "index.html"
        errors: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {KataError: _failed, HTTPException: _refused}
        self.app: ASGIApp = Guard(Starlette(routes=routes, exception_handlers=errors), {*own_names(), *names})

    # ---------------------------------------------------------------------------------------------------- Kata's paths

    async def _index(self, request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return FileResponse(self._page)
        return PlainTextResponse(_INDEX)

    async def _metrics(self, request: Request) -> Response:
        if "sandbox" in request.query_params:
            answer = await scrape.ask(self._asked(request).directory, self._timeout)
            checked, _ = await off_loop(scrape.owned, answer, "")
            return Response(scrape.joined([checked]), media_type=CONTENT_TYPE)
        try:
            async with asyncio.timeout(_TURN_TIMEOUT_S):
                await self._turns.acquire()
        except TimeoutError:
            return PlainTextResponse("too many scrapes at a time\n", 503)
        try:
            text = await self._scraper.text()
            headers = {"Vary": "Accept-Encoding"}
            if "gzip" in request.headers.get("accept-encoding", ""):
                text = await off_loop(gzip.compress, text, 1)
                headers["Content-Encoding"] = "gzip"
        except BaseException:
            self._turns.release()
            raise
        return _InTurn(text, headers, self._turns)

    async def _list(self, request: Request) -> Response:
        return PlainTextResponse("".join(f"{sandbox.id}\n" for sandbox in self._sorted()))

    async def _agent_url(self, request: Request) -> Response:
        return PlainTextResponse(await self._ask(self._asked(request), "/agent-url"))

    async def _variables(self, request: Request) -> Response:
        _of_this_process(request)
        return JSONResponse(debug.variables(len(self.sandboxes.all), len(self._viewers)))

    async def _profile(self, request: Request) -> Response:
        _of_this_process(request)
        profile = request.path_params["profile"]
        if profile == "":
            return PlainTextResponse("cmdline\ngoroutine\nheap\n")
        if profile == "cmdline":
            return PlainTextResponse("\0".join(debug.variables(0, 0)["cmdline"]))
        if profile == "goroutine":
            return PlainTextResponse(debug.stacks())
        if profile == "heap":
            found = await off_loop(debug.heap)
            return PlainTextResponse(found) if found else PlainTextResponse(f"{debug.NO_TRACEMALLOC}\n", 404)
        raise NotFound(f"there is no profile {profile[:40]!a}: {debug.ABSENT.get(profile, 'it is not known')}")

    # ------------------------------------------------------------------------------------------------------- the page

    async def _stream(self, request: Request) -> Response:
        if len(self._viewers) >= MAX_VIEWERS:
            return PlainTextResponse("too many viewers at a time\n", 503)
        first = encoded(
            "all",
            {
                "sandboxes": [sandbox.summary() for sandbox in self._sorted()],
                "events": list(self.sandboxes.events),
                "totals": self.sandboxes.totals(),
            },
        )
        return StreamingResponse(
            self._viewers.watch(first), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def _details(self, request: Request) -> Response:
        return JSONResponse(self._named(request.path_params["name"]).details())

    async def _console(self, request: Request) -> Response:
        return PlainTextResponse(printable(await self._ask(self._named(request.path_params["name"]), "/console")))

    # --------------------------------------------------------------------------------------------------------- behind

    def _sorted(self) -> list[Sandbox]:
        return [self.sandboxes.all[name] for name in sorted(self.sandboxes.all)]

    def _asked(self, request: Request) -> Sandbox:
        """The sandbox that a query names, by its id or by the name of its state directory.

        Raises:
            HTTPException: it names none, or several.
            NotFound: there is none.
        """
        wanted = request.query_params.get("sandbox", "")
        found = [sandbox for sandbox in self.sandboxes.all.values() if wanted in (sandbox.id, sandbox.name)]
        if len(found) > 1:
            names = " or ".join(sandbox.name for sandbox in found)
            raise HTTPException(400, f"several sandboxes have this id; use {names}")
        if not wanted:
            raise HTTPException(400, "?sandbox=ID is missing")
        return self._named(found[0].name if found else wanted)

    def _named(self, name: str) -> Sandbox:
        found = self.sandboxes.all.get(name)
        if found is None:
            raise NotFound(f"there is no sandbox {name[:80]!a}", hint="/sandboxes lists them")
        return found

    async def _ask(self, sandbox: Sandbox, path: str) -> str:
        answer = await ask_sandbox(sandbox.directory, "GET", path, timeout=_ANSWER_TIMEOUT_S, max_answer=_MAX_ANSWER)
        return answer.decode(errors="replace")


class _InTurn(StreamingResponse):
    """A text in pieces: not all of it waits in the memory of each connection. Gives the turn back at its end."""

    def __init__(self, text: bytes, headers: dict[str, str], turns: asyncio.Semaphore) -> None:
        pieces = (text[begin : begin + _PIECE] for begin in range(0, len(text), _PIECE))
        length = {"Content-Length": str(len(text))}
        super().__init__(_each(pieces), media_type=CONTENT_TYPE, headers={**headers, **length})
        self._turns = turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._turns.release()


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _file(path: Path) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    return answer


def _of_this_process(request: Request) -> None:
    if "sandbox" in request.query_params:
        raise NotFound(debug.IN_SHIMS)


async def _failed(request: Request, error: KataError) -> Response:
    hint = f"\nhint: {error.hint}" if error.hint else ""
    return PlainTextResponse(f"{error.message}{hint}\n", status_of(error))


async def _refused(request: Request, error: HTTPException) -> Response:
    return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)
