"""Files of a running sandbox's containers, over its agent's socket: what is at a path, tar streams of it and to it."""

from __future__ import annotations

import asyncio
import io
import os
import secrets
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from kata.archive.tar import EntryType, TarReader
from kata.cli.streams import HostSink
from kata.errors import DeadlineExceeded, NotFound, ResourceExhausted, Unavailable, Unimplemented
from kata.loop.off import off_loop
from kata.oci import convert
from kata.protocols import bound, files
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.sandbox.process import Process
from kata.runtime.sandbox.states import State
from kata.runtime.sandbox.stdio import PIECE, FdSink, FdSource, Sink, Source, Stdio
from kata.ttrpc import Client

#: Bytes of what the guest's program may say.
_MAX_SAID = 64 << 10
#: Seconds to look at one path, or to read one small file: a program has to be executed in the guest.
_SOON_S = 60.0
#: Bytes of an archive beside the one small file in it.
_ARCHIVE_ROOM = 16 << 10
#: Seconds for it to say why it has ended, once its stream has.
_LAST_WORDS_S = 2.0
_T = TypeVar("_T")


class AgentFiles:
    """The files of the containers of one sandbox.

    Args:
        client: connected to its agent's socket; stays the caller's.
    """

    def __init__(self, client: Client) -> None:
        self._agent = AgentClient(client)

    async def stat(self, container_id: str, path: str) -> files.Found:
        """What is at a path of a container.

        Raises:
            KataError: the guest cannot tell.
        """
        said = Kept(_MAX_SAID)
        await self._soon(files.stat_arguments(container_id, path), said)
        return files.Found.from_json(bytes(said.content))

    async def get(
        self, container_id: str, path: str, name: str, out: Sink, *, follow: bool = False, attributes: bool = False
    ) -> files.Report:
        """Send a tar stream of a path to a sink; see `kata.archive.pack.pack`.

        Raises:
            KataError: there is no such file, or it cannot be read.
        """
        arguments = files.get_arguments(container_id, path, name, follow=follow, attributes=attributes)
        return await self._run(arguments, None, out)

    async def get_to(
        self, fd: int, container_id: str, path: str, name: str, *, follow: bool = False, attributes: bool = False
    ) -> files.Report:
        """As `get`, to a descriptor of this process, which the caller keeps.

        Raises:
            OSError: it cannot be written; the rest is not asked for.
            KataError: as `get`.
        """
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sink = HostSink(fd, failed.set_exception)
        copying = asyncio.ensure_future(self.get(container_id, path, name, sink, follow=follow, attributes=attributes))
        ends: tuple[asyncio.Future[Any], ...] = (copying, failed)
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
            return await copying
        finally:
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)

    async def read(self, container_id: str, path: str, limit: int) -> bytes:
        """The content of a file, at most so many bytes.

        Raises:
            NotFound: there is none.
            ResourceExhausted: it is larger.
            KataError: it cannot be read.
        """
        archive = Kept(limit + _ARCHIVE_ROOM)
        await self._soon(files.get_arguments(container_id, path, "file", follow=True), archive)
        reader = TarReader(io.BytesIO(archive.content), f"{path} of container {container_id}")
        for entry in reader:
            if entry.type is EntryType.FILE and entry.size <= limit and not archive.overflowed:
                return b"".join(reader.chunks())
            break
        raise ResourceExhausted(f"{path} of container {container_id} is no file, or larger than {limit} bytes")

    async def get_through(
        self,
        container_id: str,
        path: str,
        name: str,
        take: Callable[[BinaryIO], _T],
        *,
        follow: bool = False,
        attributes: bool = False,
    ) -> tuple[files.Report, _T]:
        """As `get`, to a function that reads the stream in a thread.

        Raises:
            KataError: as `get`, and what the function raises.
        """
        reading, writing = os.pipe()
        worker = asyncio.ensure_future(off_loop(_take, reading, take))
        copying = asyncio.ensure_future(
            self.get(container_id, path, name, FdSink(writing), follow=follow, attributes=attributes)
        )
        return await _both(copying, worker, sends=False)

    async def put(
        self, container_id: str, directory: str, source: Source, *, owner: tuple[int, int] | None
    ) -> files.Report:
        """Extract a tar stream into a directory of a container; see `kata.archive.extract.extract`.

        Raises:
            KataError: there is no such directory, or it cannot be written.
        """
        return await self._run(files.put_arguments(container_id, directory, owner), source, None)

    async def put_from(
        self, container_id: str, directory: str, give: Callable[[BinaryIO], _T], *, owner: tuple[int, int] | None
    ) -> tuple[files.Report, _T]:
        """As `put`, from a function that writes the stream in a thread.

        Raises:
            KataError: as `put`, and what the function raises.
        """
        reading, writing = os.pipe()
        worker = asyncio.ensure_future(off_loop(_give, writing, give))
        copying = asyncio.ensure_future(self.put(container_id, directory, FdSource(reading), owner=owner))
        return await _both(copying, worker, sends=True)

    async def _soon(self, arguments: list[str], stdout: Sink) -> None:
        """As `_run`, for what takes no time.

        Raises:
            DeadlineExceeded: it does.
            KataError: as `_run`.
        """
        try:
            async with asyncio.timeout(_SOON_S):
                await self._run(arguments, None, stdout)
        except TimeoutError:
            raise DeadlineExceeded(f"the guest did not answer about its files within {_SOON_S:g} s") from None

    async def _run(self, arguments: list[str], stdin: Source | None, stdout: Sink | None) -> files.Report:
        """Run the guest's program.

        Raises:
            Unimplemented: the agent has none.
            Unavailable: the guest has ended, or the program was killed.
            KataError: what it says.
        """  # noqa: DOC501 - `report.error` is one
        said = Kept(_MAX_SAID)
        exec_id = f"kata-files-{secrets.token_hex(8)}"
        process = Process(self._agent, "", exec_id, Stdio(stdin, stdout, said))
        try:
            message = convert.process_to_proto({"args": arguments, "cwd": "/", "env": [], "user": {"uid": 0, "gid": 0}})
            try:
                await self._agent.exec_process("", exec_id, message, {bound.KEY: bound.CONNECTION})
                process.become(State.CREATED)
            except NotFound as error:
                if "container  does not exist" in error.message:
                    raise Unimplemented("the agent of this sandbox cannot copy files: it is another version") from error
                raise
            process.follow()
            exit_ = await process.wait()
        finally:
            await process.close()
        if exit_.status > 1:
            raise Unavailable(f"the copy was ended in the guest, with status {exit_.status}")
        report = files.Report.from_json(bytes(said.content))
        if report.error is not None:
            raise report.error
        if exit_.status:
            raise Unavailable("the copy failed in the guest")
        return report


class Kept:
    """A sink that keeps the first bytes of an output.

    Args:
        limit: of them.

    Attributes:
        content: what came.
        overflowed: whether there was more.
    """

    def __init__(self, limit: int) -> None:
        self.content = bytearray()
        self.overflowed = False
        self._limit = limit

    async def write(self, data: bytes) -> None:
        """Implement Sink."""
        self.overflowed |= len(self.content) + len(data) > self._limit
        self.content += data[: self._limit - len(self.content)]

    async def finish(self) -> None:
        """Implement Sink."""

    def close(self) -> None:
        """Implement Sink."""


def _take(fd: int, take: Callable[[BinaryIO], _T]) -> _T:
    with open(fd, "rb", buffering=PIECE) as stream:
        taken = take(stream)
        while stream.read(PIECE):
            pass  # what follows the archive's end
        return taken


def _give(fd: int, give: Callable[[BinaryIO], _T]) -> _T:
    with open(fd, "wb", buffering=PIECE) as stream:
        return give(stream)


async def _both(
    copying: asyncio.Future[files.Report], worker: asyncio.Future[_T], *, sends: bool
) -> tuple[files.Report, _T]:
    """Wait for both ends of a copy; the end of one that fails is the other's.

    Args:
        copying: the guest's.
        worker: this side's.
        sends: whether this side sends: what the guest says of a stream that was cut off says nothing then.

    Raises:
        KataError: why one has failed.
    """
    try:
        ends: tuple[asyncio.Future[Any], ...] = (copying, worker)
        await asyncio.wait(ends, return_when=asyncio.FIRST_EXCEPTION)
        if sends:
            # Its pipe is closed if the guest has ended, so it ends, too.
            await asyncio.wait([worker])
            if not isinstance(worker.exception(), BrokenPipeError):
                worker.result()
        elif worker.done() and worker.exception() is not None:
            # The guest may be about to say why its stream was cut off.
            await asyncio.wait([copying], timeout=_LAST_WORDS_S)
            if not copying.done():
                worker.result()
        return await copying, await worker
    finally:
        copying.cancel()
        await asyncio.gather(copying, return_exceptions=True)
        await asyncio.gather(worker, return_exceptions=True)
