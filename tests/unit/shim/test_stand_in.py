"""The process that stands for a container: where it is, that it ends, and what it is told apart by."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.runtime.ledger.processes import processes_of
from kata.shim.stand_in import StandIn, target_of
from tests.support.waiting import eventually, has_ended


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    stand_in = StandIn(str(tmp_path), os.getpid())
    yield stand_in
    stand_in.end()


def test_belongs_to_its_sandbox(stand_in: StandIn, tmp_path: Path) -> None:
    eventually(lambda: list(processes_of(str(tmp_path))), "the process", lambda found: found == [stand_in.pid])


def test_is_in_no_pid_namespace_of_the_hosts(stand_in: StandIn) -> None:
    assert os.readlink(f"/proc/{stand_in.pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    assert os.readlink(f"/proc/{stand_in.pid}/ns/net") == os.readlink("/proc/self/ns/net"), "the VMM's"


def test_ends_once(stand_in: StandIn) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    stand_in.end()
    stand_in.end()
    assert has_ended(stand_in.pid)
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1


async def test_who_kills_it_is_heard(stand_in: StandIn) -> None:
    killed = asyncio.Event()
    stand_in.watch(killed.set)
    os.kill(stand_in.pid, signal.SIGKILL)
    await asyncio.wait_for(killed.wait(), 30)


async def test_its_own_end_is_not_heard(stand_in: StandIn) -> None:
    killed = asyncio.Event()
    stand_in.watch(killed.set)
    stand_in.end()
    await asyncio.sleep(0.01)
    assert not killed.is_set()


@pytest.mark.parametrize(
    ("kind", "path", "target"),
    [
        ("pid", "/proc/{}/ns/pid", "box"),
        ("pid", "/proc/{}/ns/net", ""),
        ("pid", "/proc/{}0/ns/pid", ""),
        ("pid", "/run/pidns", ""),
        ("pid", None, ""),
        ("network", "/proc/{}/ns/pid", ""),
    ],
)
def test_a_container_is_named_by_it(stand_in: StandIn, kind: str, path: str | None, target: str) -> None:
    entry = {"type": kind} if path is None else {"type": kind, "path": path.format(stand_in.pid)}
    spec = {"linux": {"namespaces": [{"type": "mount"}, entry]}}
    assert target_of(spec, {"box": stand_in}) == target  # type: ignore[arg-type]
