"""A pre-spawned container: what it is given, and what happens to one that has died.

crun itself needs a guest with unified control groups, so a script stands for it that reads and writes the same files;
tests/vm/test_agent_prespawn.py has the real one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kata.agent.config import AgentConfig
from kata.agent.context import AgentContext
from kata.agent.crun import Streams
from kata.agent.oom import OomWatcher
from kata.agent.paths import Paths
from kata.agent.reaper import Reaper
from kata.agent.runtime import Crun
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.timeout(30)

_SCRIPT = """#!/bin/sh
for word; do
    case $word in
    --pid-file=*) number=${word#*=} ;;
    --bundle=*) bundle=${word#*=} configuration=$bundle/config.json ;;
    --config=*) configuration=${word#*=} ;;
    esac
done
echo $$ >"$bundle/pid"
cat "$configuration" >"$bundle/first"
cat "$configuration" >"$bundle/second"
echo 42 >"$number"
"""


@pytest.fixture
async def crun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Crun]:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "crun").write_text(_SCRIPT)
    (programs / "crun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    reaper = Reaper()
    reaper.start()
    yield Crun(reaper, str(tmp_path / "root"), str(tmp_path / "prespawned"))
    reaper.stop()


def bundle(tmp_path: Path, content: bytes) -> Path:
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "config.json").write_bytes(content)
    return directory


async def waiting(tmp_path: Path) -> Path:
    """The directory of the only pre-spawned container, as soon as it waits."""
    directory = tmp_path / "prespawned" / "_prespawned-1"
    pid = directory / "pid"
    await eventually_async(lambda: pid.exists() and pid.read_text(), "a pre-spawned container")
    return directory


@pytest.mark.parametrize("size", [2, 5000, 300_000])
async def test_the_configuration_is_read_twice(crun: Crun, tmp_path: Path, size: int) -> None:
    content = b"c" * size
    made = bundle(tmp_path, content)
    streams = Streams()
    crun.prespawn(streams)
    directory = await waiting(tmp_path)
    assert await crun.create("c1", str(made), streams) == 42
    assert (directory / "first").read_bytes() == (directory / "second").read_bytes() == content
    assert not (made / "first").exists()
    await crun.delete("c1")
    assert not directory.exists()


async def test_one_that_still_loads_is_waited_for(crun: Crun, tmp_path: Path) -> None:
    made = bundle(tmp_path, b"{}")
    streams = Streams()
    crun.prespawn(streams)
    assert await crun.create("c1", str(made), streams) == 42
    assert (tmp_path / "prespawned" / "_prespawned-1" / "second").read_bytes() == b"{}"


@pytest.mark.parametrize("reason", ["killed", "too much"])
async def test_one_that_has_died_is_replaced(crun: Crun, tmp_path: Path, reason: str) -> None:
    content = b"c" * (200 if reason == "killed" else 1 << 28)
    made = bundle(tmp_path, content)
    streams = Streams()
    crun.prespawn(streams)
    directory = await waiting(tmp_path)
    pid = int((directory / "pid").read_text())
    if reason == "killed":
        os.killpg(pid, signal.SIGKILL)
        await eventually_async(lambda: not Path(f"/proc/{pid}").exists(), "its end")
    assert await crun.create("c1", str(made), streams) == 42
    assert (made / "first").read_bytes() == content
    assert not directory.exists()
    await eventually_async(lambda: not Path(f"/proc/{pid}").exists(), "its end")


async def test_streams_that_nothing_was_prespawned_with(crun: Crun, tmp_path: Path) -> None:
    made = bundle(tmp_path, b"{}")
    assert await crun.create("c1", str(made), Streams()) == 42
    assert (made / "second").read_bytes() == b"{}"


async def test_without_crun_nothing_is_prespawned_and_nothing_left(
    crun: Crun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    oom = OomWatcher()
    agent = AgentContext(Paths.under(str(tmp_path)), Reaper(), crun, oom, AgentConfig())
    before = os.listdir("/proc/self/fd")
    agent.prespawn_containers()
    assert "cannot pre-spawn a container" in caplog.text
    assert os.listdir("/proc/self/fd") == before
    assert os.listdir(tmp_path / "prespawned") == []
    oom.close()
