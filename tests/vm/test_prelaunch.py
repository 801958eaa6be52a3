"""A VM that runs before its sandbox is asked for: used if it is the right one, gone without a trace if not."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kata.oci.default import default_spec
from kata.oci.spec import Bundle, Mount, Spec
from kata.runtime.config.loader import load
from kata.runtime.config.settings import Config
from kata.runtime.hypervisor.base import SHARE_VIRTIO_FS
from kata.runtime.launch import start_slots
from kata.runtime.launch.prelaunch import Prelaunch, prelaunch
from kata.runtime.launch.start_slots import StartSlot, acquire, try_acquire
from kata.runtime.launch.timings import read
from kata.runtime.ledger.journal import STATE_ROOT, Ledger, claim
from kata.runtime.ledger.processes import processes_of
from kata.runtime.sandbox.sandbox import Sandbox
from kata.runtime.sandbox.start import start_sandbox
from tests.support import leaks
from tests.support.waiting import eventually

pytestmark = [pytest.mark.vm, pytest.mark.timeout(240)]

PREFIX = f"{leaks.TEST_PREFIX}ahead-"
MEMORY_MIB = 256
#: Start slots of this host.
SLOTS = start_slots._SLOTS_PER_CPU * len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    with leaks.nothing_left(PREFIX):
        yield


@pytest.fixture(scope="module")
def config() -> Config:
    config = load().config
    return replace(config, hypervisor=replace(config.hypervisor, default_memory=MEMORY_MIB))


@pytest.fixture
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    ledger = claim(f"{STATE_ROOT}/{PREFIX}{request.node.name[-20:].strip('_')}")
    yield ledger
    ledger.release()


def take_all() -> list[StartSlot]:
    """The host's start slots, as soon as the starts of others are through."""
    taken: list[StartSlot] = []

    def take() -> int:
        while slot := try_acquire():
            taken.append(slot)
        return len(taken)

    eventually(take, "every start slot", lambda count: count == SLOTS)
    return taken


def bundle_in(directory: Path, spec: Spec | None = None) -> Bundle:
    spec = spec or default_spec(["true"], rootfs="/nonexistent", hostname="box")
    (directory / "config.json").write_text(json.dumps(spec))
    return Bundle(directory, spec, Path("/nonexistent"))


def begin(ledger: Ledger, bundle: Bundle, config: Config) -> Prelaunch | None:
    return prelaunch(Path(ledger.directory).name, str(bundle.path), config, ledger)


def begun(ledger: Ledger, bundle: Bundle, config: Config) -> Prelaunch:
    """As soon as others leave a start slot."""
    ahead = eventually(lambda: begin(ledger, bundle, config), "a prelaunched VM")
    assert ahead is not None
    return ahead


async def start(ledger: Ledger, bundle: Bundle, config: Config, ahead: Prelaunch | None) -> Sandbox:
    return await start_sandbox(Path(ledger.directory).name, bundle, config, ledger, prepared=ahead)


def test_without_a_template_nothing_is_prelaunched(tmp_path: Path, config: Config, ledger: Ledger) -> None:
    nowhere = replace(config, factory=replace(config.factory, template_path=tmp_path / "templates"))
    assert begin(ledger, bundle_in(tmp_path), nowhere) is None


async def test_a_sandbox_without_a_prelaunched_vm(tmp_path: Path, config: Config, ledger: Ledger) -> None:
    """It makes the template, for the tests below as well, if there is none."""
    sandbox = await start(ledger, bundle_in(tmp_path), config, None)
    await sandbox.stop()


async def test_the_sandbox_takes_it_over(tmp_path: Path, config: Config, ledger: Ledger) -> None:
    bundle = bundle_in(tmp_path)
    ahead = begun(ledger, bundle, config)
    pid = ahead.process.pid
    sandbox = await start(ledger, bundle, config, ahead)
    try:
        assert sandbox.pid == pid
        await sandbox.agent.check(10)
    finally:
        await sandbox.stop()


async def test_it_has_virtio_fs_if_the_container_may_write_to_a_volume(
    tmp_path: Path, config: Config, ledger: Ledger
) -> None:
    volume = Mount(destination="/data", type="bind", source=str(tmp_path), options=["rbind"])
    spec = default_spec(["true"], rootfs="/nonexistent", hostname="box", mounts=[volume])
    bundle = bundle_in(tmp_path, spec)
    first = await start(claim(f"{STATE_ROOT}/{PREFIX}first"), bundle, config, None)
    await first.stop()
    ahead = begun(ledger, bundle, config)
    pid = ahead.process.pid
    assert ahead.plan.share_fs == SHARE_VIRTIO_FS
    sandbox = await start(ledger, bundle, config, ahead)
    try:
        assert sandbox.pid == pid
        await sandbox.agent.check(10)
    finally:
        await sandbox.stop()


async def test_a_sandbox_that_wants_another_vm_gets_that(tmp_path: Path, config: Config, ledger: Ledger) -> None:
    bundle = bundle_in(tmp_path)
    ahead = begun(ledger, bundle, config)
    pid = ahead.process.pid
    over_virtio_fs = replace(config, hypervisor=replace(config.hypervisor, shared_fs=SHARE_VIRTIO_FS))
    sandbox = await start(ledger, bundle, over_virtio_fs, ahead)
    try:
        assert sandbox.pid != pid
        assert not os.path.exists(f"/proc/{pid}")
        await sandbox.agent.check(10)
    finally:
        await sandbox.stop()


async def test_a_sandbox_that_never_comes(tmp_path: Path, config: Config, ledger: Ledger) -> None:
    ahead = begun(ledger, bundle_in(tmp_path), config)
    await ahead.discard()
    assert not os.path.exists(f"/proc/{ahead.process.pid}")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"ociVersion": "1.0.2", "annotations": 7}', None])
def test_a_bundle_that_is_none_is_left_to_who_can_complain(
    tmp_path: Path, config: Config, ledger: Ledger, content: bytes | None
) -> None:
    bundle = bundle_in(tmp_path)
    if content is None:
        (tmp_path / "config.json").unlink()
    else:
        (tmp_path / "config.json").write_bytes(content)
    assert begin(ledger, bundle, config) is None


async def test_a_start_waits_for_a_slot_and_releases_it(tmp_path: Path, config: Config, ledger: Ledger) -> None:
    bundle = bundle_in(tmp_path)
    taken = take_all()
    starting = asyncio.ensure_future(start(ledger, bundle, config, begin(ledger, bundle, config)))
    try:
        await asyncio.sleep(0.5)
        assert not list(processes_of(ledger.directory))
        taken[0].release()
        sandbox = await starting
        try:
            assert "start slot" in [phase.name for phase in read(Path(ledger.directory)).phases]
            # No container comes, and others are not kept waiting for one.
            taken[0] = await asyncio.wait_for(acquire(), 60)
        finally:
            await sandbox.stop()
    finally:
        for slot in taken:
            slot.release()


async def test_who_gives_up_waiting_for_a_slot_leaves_nothing(tmp_path: Path, config: Config, ledger: Ledger) -> None:
    taken = take_all()
    starting = asyncio.ensure_future(start(ledger, bundle_in(tmp_path), config, None))
    await asyncio.sleep(0.2)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    for slot in taken:
        slot.release()
    assert not os.path.exists(ledger.directory)
