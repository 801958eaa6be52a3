"""The container runtime: crun. A call is one process, or none where a few system calls are enough."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from kata.agent.crun import Call, Streams
from kata.agent.guestspec import DEFAULT_PERIOD_US
from kata.agent.prespawn import PreSpawned
from kata.agent.reaper import Reaper
from kata.errors import FailedPrecondition

_NO_STREAMS = Streams()


class Runtime(Protocol):
    """What the agent needs of a container runtime. Every method may raise KataError; none leaves a process behind."""

    def prespawn(self, streams: Streams, container_id: str = "") -> None:
        """Pre-spawn the `create` of a container with these streams, or an `exec` in the container that is named."""

    def discard(self, streams: Streams) -> None:
        """Kill what was pre-spawned with these streams, unless it has been used."""

    async def create(self, container_id: str, bundle: str, streams: Streams) -> int:
        """Create the container, its init process waiting to be started.

        Args:
            container_id: a valid id.
            bundle: its directory, with config.json.
            streams: of the init process.

        Returns:
            The init process's pid.
        """

    async def start(self, container_id: str, *, hooks: bool) -> None:
        """Let the init process run its program; `hooks`: the spec has `poststart` hooks."""

    async def exec(self, container_id: str, process: Mapping[str, Any], streams: Streams) -> int:
        """Run one more process in the container.

        Args:
            container_id: of a created container.
            process: the OCI `process`.
            streams: of the process.

        Returns:
            The process's pid.
        """

    async def update(self, container_id: str, resources: Mapping[str, Any]) -> None:
        """Apply OCI `linux.resources`."""

    async def delete(self, container_id: str) -> None:
        """Kill all processes of the container and remove it. Idempotent."""


class Crun:
    """The `Runtime` by crun; its methods are described there.

    Args:
        reaper: starts crun and adopts what it leaves behind.
        root: crun's state directory.
        prespawned: the directory for pre-spawned containers and processes.
    """

    def __init__(self, reaper: Reaper, root: str, prespawned: str) -> None:
        self._reaper = reaper
        self._root = root
        self._directory = prespawned
        self._prespawned: dict[Streams, PreSpawned] = {}
        self._count = 0
        #: crun's names of containers that were pre-spawned, which are those of their directories too.
        self._names: dict[str, str] = {}

    def prespawn(self, streams: Streams, container_id: str = "") -> None:
        """Implement `Runtime`. Raises OSError if crun cannot be executed."""
        self._count += 1
        # No container's id begins like that (`kata.oci.ids`).
        name = f"_prespawned-{self._count}"
        fifo = f"{self._directory}/{name}/description"
        if container_id:
            options = ["--detach", f"--process={fifo}", self._name(container_id)]
            call = partial(Call, self._reaper, self._root, "exec", options)
        else:
            options = [f"--bundle={self._directory}/{name}", f"--config={fifo}", name]
            call = partial(Call, self._reaper, self._root, "create", options)
        self._prespawned[streams] = PreSpawned(name, fifo, lambda: call({"--pid-file": b""}, streams))

    def discard(self, streams: Streams) -> None:
        """Implement `Runtime`."""
        prespawned = self._prespawned.pop(streams, None)
        if prespawned is not None:
            prespawned.discard()

    async def create(self, container_id: str, bundle: str, streams: Streams) -> int:
        """Implement `Runtime`: by the pre-spawned crun with these streams, if it still runs."""
        prespawned = self._prespawned.pop(streams, None)
        configuration = f"{bundle}/config.json"
        if prespawned is not None and await prespawned.describe(_read(configuration), configuration):
            self._names[container_id] = prespawned.name
            return int(await prespawned.call.finish())
        return await self._start("create", streams, [f"--bundle={bundle}", container_id], {})

    async def start(self, container_id: str, *, hooks: bool) -> None:
        """Implement `Runtime`: without crun if there are no hooks to run."""
        name = self._name(container_id)
        if hooks:
            await self._call("start", [name])
        else:
            _write_exec_fifo(container_id, f"{self._root}/{name}/exec.fifo")

    async def exec(self, container_id: str, process: Mapping[str, Any], streams: Streams) -> int:
        """Implement `Runtime`: by the pre-spawned crun with these streams, if it still runs."""
        description = json.dumps(process).encode()
        prespawned = self._prespawned.pop(streams, None)
        if prespawned is not None and await prespawned.describe(description):
            return int(await prespawned.call.finish())
        options = ["--detach", self._name(container_id)]
        return await self._start("exec", streams, options, {"--process": description})

    async def update(self, container_id: str, resources: Mapping[str, Any]) -> None:
        """Implement `Runtime`."""
        cpu = resources.get("cpu") or {}
        if (cpu.get("quota") or 0) < 0 and not cpu.get("period"):
            # crun lifts a quota only together with a period.
            resources = {**resources, "cpu": {**cpu, "period": DEFAULT_PERIOD_US}}
        await self._call("update", [self._name(container_id)], {"--resources": json.dumps(resources).encode()})

    async def delete(self, container_id: str) -> None:
        """Implement `Runtime`, and remove the directory of a pre-spawned container."""
        name = self._name(container_id)
        if _is_directory(f"{self._root}/{name}"):
            await self._call("delete", ["--force", name])
        if self._names.pop(container_id, None):
            shutil.rmtree(f"{self._directory}/{name}")

    def _name(self, container_id: str) -> str:
        return self._names.get(container_id, container_id)

    async def _start(self, verb: str, streams: Streams, options: Sequence[str], files: dict[str, bytes]) -> int:
        """Make a call that leaves a process running, and return its pid. The caller is inside `Reaper.adopting`."""
        if streams.console_socket:
            options = [f"--console-socket={streams.console_socket}", *options]
        return int(await self._call(verb, options, files | {"--pid-file": b""}, streams))

    async def _call(
        self,
        verb: str,
        options: Sequence[str],
        files: Mapping[str, bytes] | None = None,
        streams: Streams = _NO_STREAMS,
    ) -> str:
        """Run crun once; return what it wrote to the last of `files`."""
        return await Call(self._reaper, self._root, verb, options, files or {}, streams).finish()


def _write_exec_fifo(container_id: str, path: str) -> None:
    """Do what `crun start` does, which in an emulated guest takes less than a tenth of executing it.

    The container's init process waits in a read from this FIFO (libcrun, status.c). crun removes it afterwards, so that
    a container cannot be started twice.

    Raises:
        FailedPrecondition: no process reads there.
        OSError: the FIFO cannot be opened for another reason.
    """
    try:
        # Not blocking: the process has opened it before crun returned, or is dead.
        fifo = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENXIO):
            raise
        raise FailedPrecondition(f"container {container_id} is not waiting to be started") from None
    try:
        os.unlink(path)
        os.write(fifo, b"\0")
    except BrokenPipeError:
        raise FailedPrecondition(f"container {container_id} has ended before it was started") from None
    finally:
        os.close(fifo)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _is_directory(path: str) -> bool:
    return os.path.isdir(path)
