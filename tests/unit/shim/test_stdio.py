"""containerd's stdio: FIFOs whose other end is late, absent or gone; files; logging binaries."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kata.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, KataError, NotFound
from kata.runtime.sandbox.stdio import Stdio
from kata.shim import stdio as module
from kata.shim.stdio import open_stdio
from tests.support.waiting import eventually_async

LIMIT_S = 60
#: More than a FIFO holds.
BULK = b"0123456789abcdef" * (1 << 16)


@pytest.fixture
def fifo(tmp_path: Path) -> Callable[[str], str]:
    def make(name: str) -> str:
        os.mkfifo(tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.fixture(autouse=True)
async def limited() -> AsyncIterator[None]:
    """No wait in these tests is longer than this, and no task or descriptor is left."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert set(os.listdir("/proc/self/fd")) <= before


async def streams(stdin: str = "", stdout: str = "", stderr: str = "", *, terminal: bool = False) -> Stdio:
    return await open_stdio(stdin, stdout, stderr, terminal=terminal, environment={"CONTAINER_ID": "box"})


async def read_all(path: str) -> bytes:
    """What a reader that comes now gets until the end."""
    return await asyncio.wait_for(asyncio.to_thread(Path(path).read_bytes), LIMIT_S)


class TestFifoSink:
    async def test_a_reader_that_comes_late_gets_everything(self, fifo: Callable[[str], str]) -> None:
        """Pitfall: a FIFO opened for reading and writing loses what its writer leaves behind."""
        path = fifo("out")
        sink = (await streams(stdout=path)).stdout
        assert sink is not None

        async def write() -> None:
            await sink.write(b"early ")
            await sink.write(b"words")
            await sink.finish()

        writing = asyncio.create_task(write())
        await asyncio.sleep(0.1)
        assert not writing.done()
        assert await read_all(path) == b"early words"
        await writing

    async def test_more_than_a_fifo_holds(self, fifo: Callable[[str], str]) -> None:
        path = fifo("out")
        sink = (await streams(stdout=path)).stdout
        assert sink is not None

        async def write() -> None:
            await sink.write(BULK)
            await sink.finish()

        said, _ = await asyncio.gather(read_all(path), write())
        assert said == BULK

    async def test_a_reader_that_leaves_does_not_end_the_stream(self, fifo: Callable[[str], str]) -> None:
        """A client that detaches and attaches again: no EPIPE in between."""
        path = fifo("out")
        sink = (await streams(stdout=path)).stdout
        assert sink is not None
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        await sink.write(b"first")
        assert os.read(reader, 100) == b"first"
        os.close(reader)
        await sink.write(b"kept for whoever comes")
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        assert os.read(reader, 100) == b"kept for whoever comes"
        os.close(reader)
        sink.close()

    async def test_nothing_written_still_shows_an_end(self, fifo: Callable[[str], str]) -> None:
        path = fifo("out")
        sink = (await streams(stdout=path)).stdout
        assert sink is not None
        said, _ = await asyncio.gather(read_all(path), sink.finish())
        assert said == b""

    async def test_closing_gives_up_on_a_reader_that_never_came(self, fifo: Callable[[str], str]) -> None:
        both = await streams(stdout=fifo("out"), stderr=fifo("err"))
        await asyncio.sleep(0.05)
        both.close()
        both.close()
        await asyncio.sleep(0)

    async def test_closing_before_the_first_step(self, fifo: Callable[[str], str]) -> None:
        (await streams(stdout=fifo("out"))).close()
        await asyncio.sleep(0)

    async def test_a_fifo_that_is_removed_swallows(self, fifo: Callable[[str], str]) -> None:
        path = fifo("out")
        sink = (await streams(stdout=path)).stdout
        assert sink is not None
        os.unlink(path)
        await asyncio.wait_for(sink.write(b"x"), LIMIT_S)
        await asyncio.wait_for(sink.finish(), LIMIT_S)

    async def test_a_terminal_has_no_standard_error(self, fifo: Callable[[str], str]) -> None:
        both = await streams(stdout=fifo("out"), stderr=fifo("err"), terminal=True)
        assert both.terminal
        assert both.stderr is None
        both.close()
        await asyncio.sleep(0)

    async def test_by_uri(self, fifo: Callable[[str], str], tmp_path: Path) -> None:
        path = fifo("with space")
        sink = (await streams(stdout=f"fifo://{tmp_path}/with%20space")).stdout
        assert sink is not None
        said, _ = await asyncio.gather(read_all(path), sink.finish())
        assert said == b""


class TestFifoSource:
    async def test_waits_for_a_writer_and_ends_with_it(self, fifo: Callable[[str], str]) -> None:
        """Pitfall: the end of input comes from the last writer, so none may be held here."""
        path = fifo("in")
        source = (await streams(stdin=path)).stdin
        assert source is not None
        reading = asyncio.create_task(source.read())
        await asyncio.sleep(0.1)
        assert not reading.done(), "no writer yet is not the end"
        writer = os.open(path, os.O_WRONLY)
        os.write(writer, b"words")
        assert await asyncio.wait_for(reading, LIMIT_S) == b"words"
        os.close(writer)
        assert await asyncio.wait_for(source.read(), LIMIT_S) == b""
        source.close()

    async def test_finish_takes_what_is_there(self, fifo: Callable[[str], str]) -> None:
        """CloseIO, while a writer still has the FIFO open."""
        path = fifo("in")
        source = (await streams(stdin=path)).stdin
        assert source is not None
        writer = os.open(path, os.O_WRONLY)
        os.write(writer, b"last words")
        source.finish()  # type: ignore[attr-defined]
        assert await asyncio.wait_for(source.read(), LIMIT_S) == b"last words"
        assert await asyncio.wait_for(source.read(), LIMIT_S) == b""
        os.close(writer)
        source.close()

    async def test_finish_ends_a_read_that_waits(self, fifo: Callable[[str], str]) -> None:
        path = fifo("in")
        source = (await streams(stdin=path)).stdin
        assert source is not None
        writer = os.open(path, os.O_WRONLY)
        reading = asyncio.create_task(source.read())
        await asyncio.sleep(0.05)
        source.finish()  # type: ignore[attr-defined]
        assert await asyncio.wait_for(reading, LIMIT_S) == b""
        os.close(writer)
        source.close()

    async def test_a_cancelled_read_can_be_closed(self, fifo: Callable[[str], str]) -> None:
        source = (await streams(stdin=fifo("in"))).stdin
        assert source is not None
        reading = asyncio.create_task(source.read())
        await asyncio.sleep(0.05)
        reading.cancel()
        await asyncio.wait({reading})
        source.close()


class TestFile:
    async def test_appends_and_makes_directories(self, tmp_path: Path) -> None:
        path = tmp_path / "logs/today/box.log"
        for text in (b"one\n", b"two\n"):
            sink = (await streams(stdout=f"file://{path}")).stdout
            assert sink is not None
            await sink.write(text)
            await sink.finish()
        assert path.read_bytes() == b"one\ntwo\n"

    async def test_that_cannot_be_made(self) -> None:
        with pytest.raises(FailedPrecondition, match="cannot open log file /proc/no/log: "):
            await streams(stdout="file:///proc/no/log")

    async def test_the_other_streams_are_let_go_of(self, fifo: Callable[[str], str]) -> None:
        with pytest.raises(FailedPrecondition):
            await streams(stdin=fifo("in"), stdout=fifo("out"), stderr="file:///proc/no/log")
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("addresses", "kind", "said"),
    [
        ({"stdin": "/nonexistent"}, NotFound, "stdio /nonexistent does not exist"),
        ({"stdout": "/nonexistent"}, NotFound, "stdio /nonexistent does not exist"),
        ({"stderr": "/dev/null"}, InvalidArgument, "stdio /dev/null is not a FIFO"),
        ({"stdin": "/"}, InvalidArgument, "stdio / is not a FIFO"),
        ({"stdin": "file:///etc/passwd"}, InvalidArgument, "is not a FIFO"),
        ({"stdout": "npipe:////./pipe"}, InvalidArgument, "unknown scheme 'npipe'"),
        ({"stderr": "binary:///bin/true"}, InvalidArgument, "a logging binary takes both streams"),
        ({"stdout": "binary:///nonexistent"}, NotFound, "cannot run logging binary /nonexistent"),
        ({"stdout": "binary:///etc/passwd"}, NotFound, "cannot run logging binary /etc/passwd"),
    ],
)
async def test_addresses_that_lead_nowhere(addresses: dict[str, str], kind: type[KataError], said: str) -> None:
    with pytest.raises(kind, match=said):
        await streams(addresses.get("stdin", ""), addresses.get("stdout", ""), addresses.get("stderr", ""))


LOGGER = """#!/bin/sh
exec >"$2" 2>&1
echo "args: $1 $3 $4; id $CONTAINER_ID"
exec 5>&-
out=$(cat <&3)
err=$(cat <&4)
echo "out: $out"
echo "err: $err"
"""


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


class TestLoggingBinary:
    async def test_gets_both_streams_and_its_arguments(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        logger = script(tmp_path / "logger", LOGGER)
        both = await streams(stdout=f"binary://{logger}?--to={log}&flag&x=", stdin="")
        assert both.stdout is not None
        assert both.stderr is not None
        await both.stdout.write(b"to standard output")
        await both.stderr.write(b"to standard error")
        await both.stdout.finish()
        await asyncio.wait_for(both.stderr.finish(), LIMIT_S)
        assert log.read_text() == ("args: --to flag x; id box\nout: to standard output\nerr: to standard error\n"), (
            "it has ended when the last stream has"
        )

    async def test_that_never_gets_ready(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_BINARY_READY_TIMEOUT_S", 0.2)
        logger = script(tmp_path / "logger", "#!/bin/sh\nexec sleep 60\n")
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        before = children.read_text()
        with pytest.raises(DeadlineExceeded, match="was not ready within"):
            await streams(stdout=f"binary://{logger}")
        # However far it has come.
        assert children.read_text() == before

    async def test_whose_caller_gives_up(self, tmp_path: Path) -> None:
        logger = script(tmp_path / "logger", "#!/bin/sh\nexec sleep 60\n")
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        before = children.read_text()
        opening = asyncio.create_task(streams(stdout=f"binary://{logger}"))
        await eventually_async(children.read_text, "the binary runs", lambda seen: seen != before)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert children.read_text() == before

    async def test_beside_an_input_that_is_missing(self, tmp_path: Path) -> None:
        logger = script(tmp_path / "logger", f"#!/bin/sh\ntouch {tmp_path}/ran\nexec 5>&-\nexec sleep 60\n")
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        before = children.read_text()
        with pytest.raises(NotFound, match="does not exist"):
            await streams(stdin=str(tmp_path / "none"), stdout=f"binary://{logger}")
        assert children.read_text() == before
        assert not (tmp_path / "ran").exists()

    async def test_that_does_not_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_BINARY_EXIT_TIMEOUT_S", 0.2)
        logger = script(tmp_path / "logger", f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec 5>&-\nexec sleep 60\n")
        both = await streams(stdout=f"binary://{logger}")
        assert both.stdout is not None
        assert both.stderr is not None
        await both.stdout.finish()
        await asyncio.wait_for(both.stderr.finish(), LIMIT_S)
        assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()

    async def test_that_dies_swallows(self, tmp_path: Path) -> None:
        logger = script(tmp_path / "logger", "#!/bin/sh\nexit 1\n")
        both = await streams(stdout=f"binary://{logger}")
        assert both.stdout is not None
        assert both.stderr is not None
        await asyncio.wait_for(both.stdout.write(BULK), LIMIT_S)
        await both.stdout.finish()
        await both.stderr.finish()

    async def test_closing_reaps_it(self, tmp_path: Path) -> None:
        """A create that fails later closes its streams; no process may stay."""
        logger = script(tmp_path / "logger", f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec 5>&-\ncat <&3\ncat <&4\n")
        both = await streams(stdout=f"binary://{logger}")
        both.close()
        both.close()
        process = Path("/proc", (tmp_path / "pid").read_text().strip())
        await eventually_async(lambda: not process.exists(), "its end")
        await asyncio.sleep(0)
