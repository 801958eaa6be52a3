"""The sandboxes of the host: found by looking, followed as long as they are there.

A look at one directory takes microseconds, so that it is looked at four times a second: inotify would not tell of a
directory of state directories that is made, or mounted over, later, nor of a socket that nobody listens on any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kata.errors import InvalidArgument, KataError, Unavailable
from kata.management.client import request, stream
from kata.management.protocol import SOCKET
from kata.metrics.exposition import label_text
from kata.monitor import shown
from kata.monitor.usage import History, Point, Sample
from kata.runtime.launch import timings
from kata.runtime.ledger.names import split, validate_name

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.25
#: Sandboxes that are followed.
MAX_SANDBOXES = 2000
#: Seconds between two samples: while somebody looks at the page, and else.
WATCHED_INTERVAL_S = 2.0
UNWATCHED_INTERVAL_S = 10.0
#: Seconds for a sandbox to answer, and until one that has not is asked again.
_ANSWER_TIMEOUT_S = 3.0
_RETRY_S = 1.0
#: Bytes of an answer: a sandbox of many containers tells of each.
_MAX_ANSWER = 1 << 20
_MAX_EVENT_LINE = 16 << 10
#: Events that are kept: of a sandbox, and of all.
_MAX_OWN_EVENTS = 100
_MAX_EVENTS = 500

#: A change, by type and content.
Tell = Callable[[str, dict[str, Any]], None]


@dataclass
class Sandbox:
    """One sandbox, as far as it is known.

    Attributes:
        name: of its state directory.
        directory: that.
        found: when it was found, in seconds since 1970.
        described: `shown.description` of it; None as long as it has not answered.
        problem: why it does not answer; "" if it does.
        started: seconds since 1970; None if it is not known.
        phases: of its start.
        sample: what it used when it was asked last.
        now: the same as rates.
        container_cpu: of each container, in percent of one CPU.
        history: the last hour.
        events: the last ones, oldest first.
    """

    name: str
    directory: Path
    found: float
    described: dict[str, Any] | None = None
    problem: str = ""
    started: float | None = None
    phases: list[dict[str, Any]] = field(default_factory=list)
    sample: Sample | None = None
    now: Point | None = None
    container_cpu: dict[str, float] = field(default_factory=dict)
    history: History = field(default_factory=History)
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_MAX_OWN_EVENTS))

    @property
    def id(self) -> str:
        """Its id, which another namespace of containerd may have as well."""
        return split(self.name)[0]

    @property
    def state(self) -> str:
        """What it says; "starting" as long as it says nothing, "silent" if it no longer does."""
        if self.problem:
            return "silent"
        return str(self.described["state"]) if self.described else "starting"

    def take(self, sample: Sample) -> None:
        """Take what it has answered."""
        if self.sample is not None:
            self.now = sample.since(self.sample)
            self.container_cpu = sample.container_cpu(self.sample)
        self.sample = sample
        self.history.add(sample)

    def summary(self) -> dict[str, Any]:
        """What the page's list shows of it."""
        described = self.described or shown.description({})
        used = self.sample.containers if self.sample else {}
        return {
            "name": self.name,
            "id": self.id,
            "namespace": split(self.name)[1],
            "state": self.state,
            "problem": self.problem,
            "engine": described["engine"],
            "why_ended": described["why_ended"],
            "pod": described["pod"],
            "vm": described["vm"],
            "started": self.started or self.found,
            "now": self.now._asdict() if self.now else None,
            "containers": [
                {**one, **_usage(used.get(one["id"])), "cpu": self.container_cpu.get(one["id"])}
                for one in described["containers"]
            ],
        }

    def details(self) -> dict[str, Any]:
        """The same, and what its own page shows besides."""
        return {
            **self.summary(),
            "phases": self.phases,
            "events": list(self.events),
            "history": [list(point) for point in self.history.points()],
        }


def _usage(used: Any) -> dict[str, Any]:
    return {"memory": used.memory, "limit": used.limit, "pids": used.pids} if used else {}


class Sandboxes:
    """All sandboxes of the host. `run` finds, follows and forgets them.

    Args:
        root: the directory of state directories.
        tell: told of each change.

    Attributes:
        all: by the names of their state directories.
        events: the last ones of all of them, oldest first.
        watched: whether somebody looks at the page.
    """

    def __init__(self, root: Path, tell: Tell = lambda _type, _content: None) -> None:
        self.all: dict[str, Sandbox] = {}
        self.events: deque[dict[str, Any]] = deque(maxlen=_MAX_EVENTS)
        self.watched: Callable[[], bool] = lambda: False
        self._root = root
        self._tell = tell
        self._totals = History()
        self._followers: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Work until it is cancelled."""
        sampling = asyncio.create_task(self._sample_all(), name="samples")
        try:
            while True:
                self.look()
                await asyncio.sleep(LOOK_INTERVAL_S)
        finally:
            for task in (sampling, *self._followers.values()):
                task.cancel()
            await asyncio.gather(sampling, *self._followers.values(), return_exceptions=True)

    def look(self) -> None:
        """Look once: begin to follow those that have come, forget those that have gone."""
        there = names_in(self._root)
        for name in [name for name in self.all if name not in there]:
            self._followers.pop(name).cancel()
            del self.all[name]
            self._record(name, {"time": time.time(), "type": "sandbox-gone", "container": "", "detail": {}})
            self._tell("gone", {"name": name})
        for name in sorted(there - self.all.keys())[: MAX_SANDBOXES - len(self.all)]:
            sandbox = self.all[name] = Sandbox(name, self._root / name, time.time())
            self._followers[name] = asyncio.create_task(self._follow(sandbox), name=f"events of {name}")

    async def _follow(self, sandbox: Sandbox) -> None:
        """Learn what happens in a sandbox, and what it says of itself then."""
        happened = asyncio.Event()
        describing = asyncio.create_task(self._keep_described(sandbox, happened), name=f"state of {sandbox.name}")
        try:
            while True:
                try:
                    async with stream(sandbox.directory, "/events", timeout=_ANSWER_TIMEOUT_S) as pieces:
                        happened.set()
                        async for event in _events(pieces):
                            sandbox.events.append(self._record(sandbox.name, event))
                            happened.set()
                except (KataError, OSError) as error:
                    self._failed(sandbox, error)
                await asyncio.sleep(_RETRY_S)
        finally:
            describing.cancel()
            await asyncio.gather(describing, return_exceptions=True)

    async def _keep_described(self, sandbox: Sandbox, happened: asyncio.Event) -> None:
        """Ask it whenever something has happened, but not more often than one can see."""
        while True:
            await happened.wait()
            happened.clear()
            await self._describe(sandbox)
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def _describe(self, sandbox: Sandbox) -> None:
        try:
            sandbox.described = shown.description(await ask(sandbox.directory, "/sandbox"))
            sandbox.problem = ""
        except KataError as error:
            self._failed(sandbox, error)
        with contextlib.suppress(KataError):  # it has not started anything yet
            start = timings.read(sandbox.directory)
            sandbox.started = start.began
            sandbox.phases = [asdict(phase) for phase in start.phases]
        self._tell("sandbox", sandbox.summary())

    def _failed(self, sandbox: Sandbox, error: Exception) -> None:
        problem = shown.text(str(error))
        if problem != sandbox.problem:
            log.info("sandbox %s: %s", sandbox.name, problem)
            sandbox.problem = problem
            self._tell("sandbox", sandbox.summary())

    def _record(self, name: str, event: dict[str, Any]) -> dict[str, Any]:
        """Tell of an event; returns it with the sandbox that it is of."""
        event = {**event, "sandbox": name}
        self.events.append(event)
        self._tell("event", event)
        return event

    async def _sample_all(self) -> None:
        """Ask every sandbox for what it uses, all at once, again and again."""
        last = 0.0
        while True:
            interval = WATCHED_INTERVAL_S if self.watched() else UNWATCHED_INTERVAL_S
            if time.monotonic() - last < interval:
                await asyncio.sleep(LOOK_INTERVAL_S)
                continue
            last = time.monotonic()
            await asyncio.gather(*(self._sample(sandbox) for sandbox in list(self.all.values())))
            self._add_up()
            self._tell("usage", {"sandboxes": [sandbox.summary() for sandbox in self.all.values()]})

    async def _sample(self, sandbox: Sandbox) -> None:
        try:
            sandbox.take(Sample.of(await ask(sandbox.directory, "/stats")))
            sandbox.problem = ""
        except (KataError, ValueError) as error:
            if sandbox.described is not None:  # or it is still starting
                self._failed(sandbox, error)

    def _add_up(self) -> None:
        """Add the sums of what all use to the totals."""
        points = [sandbox.now for sandbox in self.all.values() if sandbox.now]
        sums = [sum(values) for values in zip(*points, strict=True)] or [0.0] * len(Point._fields)
        self._totals.append(Point(time.time(), *sums[1:]))

    def totals(self) -> list[list[float]]:
        """The points of the last hour, of all sandboxes together."""
        return [list(point) for point in self._totals.points()]


def names_in(root: Path) -> set[str]:
    """The names of the state directories that have a management socket."""
    found = set()
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if not entry.is_symlink() and os.path.exists(f"{entry.path}/{SOCKET}"):
                    found.add(entry.name)
    except OSError as error:
        log.debug("%s: %s", root, error.strerror)
    return {name for name in found if _is_name(name)}


def _is_name(name: str) -> bool:
    try:
        return validate_name(name) == name
    except InvalidArgument:
        return False


def owners(sandboxes: Mapping[str, Sandbox]) -> dict[str, str]:
    """The labels that every sample of a sandbox gets, by its name."""
    ids = Counter(sandbox.id for sandbox in sandboxes.values())
    found = {}
    for name, sandbox in sandboxes.items():
        pod = (sandbox.described or {}).get("pod", {})
        # An id that two namespaces of containerd have would make two sandboxes one.
        sandbox_id = sandbox.id if ids[sandbox.id] == 1 else name
        labels = {"sandbox_id": sandbox_id, **{f"cri_{key}": pod.get(key, "") for key in ("uid", "name", "namespace")}}
        found[name] = label_text(labels)
    return found


async def ask(directory: Path, path: str) -> dict[str, Any]:
    """The answer of a sandbox in JSON.

    Raises:
        Unavailable: it is no object.
        KataError: there is none.
    """
    body = await request(directory, "GET", path, timeout=_ANSWER_TIMEOUT_S, max_answer=_MAX_ANSWER)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Unavailable(f"sandbox {directory.name}: the answer to {path} is no object in JSON")
    return found


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The events in a stream of them (HTML standard, "Server-sent events"); what is none is left out."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _MAX_EVENT_LINE:
            rest = b""
        for line in lines:
            if not line.startswith(b"data:") or len(line) > _MAX_EVENT_LINE:
                continue
            try:
                said = json.loads(line[len(b"data:") :])
            except (ValueError, RecursionError):
                continue
            event = shown.event(shown.mapping(said))
            if event is not None:
                yield event
