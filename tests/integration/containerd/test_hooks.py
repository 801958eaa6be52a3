"""Hooks of a container through the shim: those of the host around its life, and the guest's at its start."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

import pytest

from kata.protocols.containerd import task_pb2, task_v2_pb2
from kata.runtime.sandbox import hooks
from kata.ttrpc import StatusError
from tests.support.rawshim import RawShim
from tests.support.waiting import eventually_async

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]


def with_hooks(raw: RawShim, container_id: str, **kinds: str) -> None:
    """Give a bundle a hook of each kind, a shell script."""
    path = raw.path(container_id) / "config.json"
    spec = json.loads(path.read_text())
    spec["hooks"] = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}]
        for kind, script in kinds.items()
    }
    path.write_text(json.dumps(spec))


def record(kind: str) -> str:
    return f'echo {kind} $(sed \'s/.*"status": *"//; s/".*//\') >>order'


async def test_a_life_with_hooks(raw: RawShim) -> None:
    container_id = raw.bundle("sh", "-c", "cat /started")
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    scripts = {kind: record(kind) for kind in kinds}
    scripts["createRuntime"] += "; readlink /proc/self/ns/mnt >mounts"
    with_hooks(raw, container_id, **scripts, startContainer="echo guest >/started")
    order = raw.path(container_id) / "order"
    task = await raw.task(container_id)
    made: Any = await task.Create(raw.create_request(container_id), timeout=60)
    assert made.pid
    before = ["prestart creating", "createRuntime creating", "createContainer creating"]
    assert order.read_text().splitlines() == before
    assert order.with_name("mounts").read_text().strip() == os.readlink("/proc/self/ns/mnt"), "those of the runtime"
    await task.Start(task_v2_pb2.StartRequest(id=container_id), timeout=60)
    assert order.read_text().splitlines() == [*before, "poststart running"]
    ended: Any = await task.Wait(task_v2_pb2.WaitRequest(id=container_id), timeout=60)
    assert ended.exit_status == 0, "the guest's hook has made the file"
    await task.Delete(task_v2_pb2.DeleteRequest(id=container_id), timeout=60)
    assert order.read_text().splitlines() == [*before, "poststart running", "poststop stopped"]


async def test_a_hook_that_fails_is_the_end_of_the_creation(raw: RawShim) -> None:
    container_id = raw.bundle()
    with_hooks(raw, container_id, createRuntime="echo cannot >&2; exit 4", poststop="touch cleaned")
    task = await raw.task(container_id)
    with pytest.raises(StatusError, match="createRuntime hook /bin/sh ended with status 4: cannot"):
        await task.Create(raw.create_request(container_id), timeout=60)
    assert (raw.path(container_id) / "cleaned").exists()
    with pytest.raises(StatusError, match="does not exist"):
        await task.State(task_v2_pb2.StateRequest(id=container_id), timeout=10)


@pytest.mark.parametrize("moment", ["creating", "running"])
async def test_what_is_to_be_run_at_the_end_is_run_after_a_kill(raw: RawShim, moment: str) -> None:
    """By `delete`, which containerd runs when it has lost the shim, and once."""
    container_id = raw.bundle("sleep", "600")
    slow = "; sleep 30" if moment == "creating" else ""
    with_hooks(raw, container_id, createRuntime=record("createRuntime") + slow, poststop=record("poststop"))
    order = raw.path(container_id) / "order"
    task = await raw.task(container_id)
    creating = asyncio.create_task(task.Create(raw.create_request(container_id), timeout=60))
    await eventually_async(order.exists, "the hook runs")
    if moment == "running":
        await creating
        await task.Start(task_v2_pb2.StartRequest(id=container_id), timeout=60)
    raw.kill(container_id)
    await asyncio.gather(creating, return_exceptions=True)
    for _ in range(2):
        raw.binary(container_id, "delete")
        assert order.read_text().splitlines() == ["createRuntime creating", "poststop stopped"]


async def test_what_is_to_be_run_at_the_end_is_told_when_it_fails_after_a_kill(raw: RawShim) -> None:
    container_id = raw.bundle("sleep", "600")
    with_hooks(raw, container_id, poststop="touch run; sleep 60")
    task = await raw.task(container_id)
    await task.Create(raw.create_request(container_id), timeout=60)
    raw.kill(container_id)
    assert hooks._LATE_TIMEOUT_S < 5, "containerd waits no longer"
    begin = time.monotonic()
    raw.binary(container_id, "delete")
    assert time.monotonic() - begin < 50, "it ends before the hook does"
    assert (raw.path(container_id) / "run").exists()


async def test_a_hook_that_fails_in_a_pod_is_the_end_of_its_container_only(raw: RawShim) -> None:
    def member() -> str:
        kind = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": sandbox_id}
        return raw.bundle("sleep", "600", annotations=kind)

    sandbox_id = raw.bundle(annotations={"io.kubernetes.cri.container-type": "sandbox"})
    first, second = member(), member()
    with_hooks(raw, first, poststop=record("poststop"))
    with_hooks(raw, second, createRuntime="echo not today >&2; exit 3", poststop=record("poststop"))
    task = await raw.task(sandbox_id)
    for container_id in (sandbox_id, first):
        if container_id != sandbox_id:
            raw.start(container_id)
        await task.Create(raw.create_request(container_id), timeout=60)
        await task.Start(task_v2_pb2.StartRequest(id=container_id), timeout=60)
    raw.start(second)
    with pytest.raises(StatusError, match="createRuntime hook /bin/sh ended with status 3: not today"):
        await task.Create(raw.create_request(second), timeout=60)
    assert (raw.path(second) / "order").read_text() == "poststop stopped\n"
    state: Any = await task.State(task_v2_pb2.StateRequest(id=first), timeout=30)
    assert state.status == task_pb2.RUNNING
    assert not (raw.path(first) / "order").exists()
    # All of the pod goes with its own container, and what the others wanted to be run then is run.
    raw.kill(sandbox_id)
    raw.binary(sandbox_id, "delete")
    assert (raw.path(first) / "order").read_text() == "poststop stopped\n"
    assert (raw.path(second) / "order").read_text() == "poststop stopped\n", "once"
