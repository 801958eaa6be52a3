"""What a container keeps of a process that has ended. Containers themselves are tested in a guest."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kata.agent import process_table
from kata.agent.container import Container
from kata.agent.paths import Paths
from kata.agent.process import Process
from kata.agent.stdio import Output, Stdio
from kata.agent.storage import Storages
from kata.errors import NotFound
from tests.support.waiting import eventually_async


async def test_an_exec_is_kept_while_somebody_reads_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of it may write for hours; a minute after its exit everything was closed."""
    monkeypatch.setattr(process_table, "_LINGER_S", 0.01)
    agent: Any = SimpleNamespace(paths=Paths.under(str(tmp_path)))
    container = Container("box", agent, {}, Storages(agent.paths))
    exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    ours, theirs = os.pipe()
    stdio = Stdio()
    stdio.stdout = Output(ours)
    container._processes["e"] = Process("process e of container box", 0, exited, stdio, lambda: None)
    reading = asyncio.create_task(container.read("e", "stdout", 100))
    exited.set_result(3)
    assert await container.wait("e") == 3
    await asyncio.sleep(0.1)
    os.write(theirs, b"late")
    assert await reading == b"late"

    def known() -> bool:
        try:
            return bool(container.process("e"))
        except NotFound:
            return False

    await eventually_async(lambda: not known(), "nobody reads any more")
    with pytest.raises(BrokenPipeError):
        os.write(theirs, b"for nobody")
    os.close(theirs)
