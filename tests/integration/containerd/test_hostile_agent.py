"""The shim against an agent that misbehaves (a test double, and no VM): it ends in time, and takes little memory."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable
from pathlib import Path

import pytest

from kata.protocols.containerd import task_v2_pb2 as task
from kata.shim.launcher import NAME
from kata.ttrpc import StatusError
from tests.support import hostileagent
from tests.support.hostileagent import MIB
from tests.support.rawshim import RawShim
from tests.support.waiting import eventually_async, has_ended

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

CONFIGURATION = """\
[hypervisor.qemu]
accelerator = "tcg"
shared_fs = "virtio-9p"
[agent.kata]
dial_timeout = 10
[factory]
enable_template = false
[runtime]
internetworking_model = "none"
"""
#: For a call that the guest does not answer: beyond what `hostileagent.install` makes of the product's deadlines.
CALL_S = 40.0
#: Bytes by which the shim may grow: the largest message in some copies, and what it imports on the way.
GROWTH = 48 * MIB
#: Bytes of its log.
LOG = 256 * 1024
#: What the guest wrote must not begin a line, or reach a terminal as anything but text.
FORGED = re.compile(r"^level=info msg=forged|[\x00-\x08\x0b-\x1f\x7f\u202e]", re.MULTILINE)


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    path = tmp_path / "configuration.toml"
    path.write_text(CONFIGURATION)
    return path


async def bear(call: Awaitable[object]) -> str:
    """What a call is refused with, or ""; it is one line of text, of bounded length, and comes in time."""
    try:
        async with asyncio.timeout(CALL_S):
            await call
        said = ""
    except StatusError as error:
        said = error.message
    assert len(said) < 4096
    assert not FORGED.search(said)
    assert "\n" not in said
    assert "Traceback" not in said
    return said


def memory(pid: int, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


async def test_the_pod_ends_and_the_host_is_unharmed(raw: RawShim, tmp_path: Path) -> None:
    """All at a time, since most of it is waiting."""
    hostileagent.launcher(raw.directory / "bin" / NAME)
    ways = sorted(hostileagent.WAYS)
    outcomes = await asyncio.gather(*(live_through(raw, way, tmp_path / way) for way in ways), return_exceptions=True)
    assert {way: outcome for way, outcome in zip(ways, outcomes, strict=True) if outcome is not None} == {}


async def live_through(raw: RawShim, way: str, directory: Path) -> None:
    """The life of a pod whose agent is of this way."""
    directory.mkdir()
    container = raw.bundle("sleep", "600")
    (raw.path(container) / "way").write_text(way)
    # containerd's FIFO: this way nothing of it is lost.
    log = raw.path(container) / "log"
    log.touch()
    client = await raw.task(container)
    pid = raw.pid(container)
    seen = [memory(pid, "VmRSS")]
    streams = {name: directory / name for name in ("stdin", "stdout", "stderr")}
    for path in streams.values():
        os.mkfifo(path)
    # Somebody who writes whatever is taken, and who never reads.
    ends = [os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in streams.values()]
    said = []
    try:
        for name, request in (
            ("Create", raw.create_request(container, **{name: str(path) for name, path in streams.items()})),
            ("Start", task.StartRequest(id=container)),
            ("Stats", task.StatsRequest(id=container)),
            ("Kill", task.KillRequest(id=container, signal=9)),
            ("Wait", task.WaitRequest(id=container)),
            ("Delete", task.DeleteRequest(id=container)),
            ("Shutdown", task.ShutdownRequest(id=container)),
        ):
            said.append(f"{name}: {await bear(client.call(name, request, timeout=CALL_S))}")
            if name == "Start":
                await feed(ends[0])
            if name != "Shutdown":
                seen.append(memory(pid, "VmHWM"))
        await eventually_async(lambda: has_ended(pid), "the shim ends", within_s=CALL_S)
    finally:
        for end in ends:
            os.close(end)
        text = log.read_text(errors="replace")
        grown = (max(seen) - seen[0]) >> 20
        print(f"\n{way}: {grown} MiB more, {len(text)} bytes of log\n  {said}\n{text[-2000:]}")  # noqa: T201
    assert max(seen) - seen[0] < GROWTH
    assert len(text) < LOG
    assert not FORGED.search(text)
    # What is an error of the project's, and said as such, may have its traceback in the log; nothing else may be there.
    for what in ("internal error", "never retrieved", "Exception in"):
        assert what not in text


async def feed(stdin: int) -> None:
    """Write as much as is taken for a second."""
    until = asyncio.get_running_loop().time() + 1
    while asyncio.get_running_loop().time() < until:
        try:
            os.write(stdin, bytes(1 << 16))
        except BlockingIOError:
            await asyncio.sleep(0.05)
