"""What is as large, as many or as little as can be: it works, or an error says what does not; nothing is left."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from kata.protocols.containerd import task_v2_pb2 as task
from kata.ttrpc import Code, StatusError
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX
from tests.support.rawshim import RawShim
from tests.support.waiting import eventually

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

MIB = 1 << 20


def changed(raw: RawShim, container: str, **changes: Any) -> None:
    """Add to a bundle's spec."""
    path = raw.path(container) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


async def run(raw: RawShim, container: str, *, timeout: float) -> int:
    """Create, start, wait for and delete a container; return its status."""
    client = await raw.task(container)
    await client.call("Create", raw.create_request(container), timeout=timeout)
    await client.call("Start", task.StartRequest(id=container), timeout=60)
    ended = await client.call("Wait", task.WaitRequest(id=container), timeout=200)
    await client.call("Delete", task.DeleteRequest(id=container), timeout=60)
    await client.call("Shutdown", task.ShutdownRequest(id=container), timeout=60)
    return int(ended.exit_status)


async def test_specs_of_megabytes(raw: RawShim) -> None:
    """The protocol's messages have 4 MiB, with Kata's own shim as well; a specification has 10 MiB."""

    def bundle(size: float) -> str:
        container = raw.bundle("sh", "-c", "exit 7")
        piece = "x" * 8000
        changed(raw, container, annotations={f"test.{number}": piece for number in range(int(size * MIB / len(piece)))})
        return container

    assert await run(raw, bundle(3.9), timeout=120) == 7
    with pytest.raises(StatusError, match="bytes are too much for the guest's agent, which takes 4194304") as caught:
        await run(raw, bundle(4.0), timeout=120)
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert "\n" not in caught.value.message
    container = bundle(10.0)
    done = raw.binary(container, "start")
    assert done.returncode == 1
    assert done.stderr.endswith(f"{container} is larger than 10 MiB\n".encode())
    assert not raw.state(container).exists()


@pytest.mark.parametrize("count", [300, *(pytest.param(count, marks=pytest.mark.long) for count in (1000, 10_000))])
async def test_very_many_mounts(raw: RawShim, tmp_path: Path, count: int) -> None:
    """Ten thousand take an emulated guest longer than it may (`create_container_timeout`), which is told."""
    (tmp_path / "file").touch()
    container = raw.bundle("sh", "-c", f"test -f /mnt/0/file && test -f /mnt/{count - 1}/file && exit 7")
    spec = json.loads((raw.path(container) / "config.json").read_text())
    binds = [
        {"destination": f"/mnt/{number}", "type": "bind", "source": str(tmp_path), "options": ["rbind", "ro"]}
        for number in range(count)
    ]
    changed(raw, container, mounts=[*spec["mounts"], *binds])
    (outcome,) = await asyncio.gather(run(raw, container, timeout=600), return_exceptions=True)
    if isinstance(outcome, StatusError) and count > 1000:
        assert outcome.code == Code.DEADLINE_EXCEEDED
        assert f"create container {container}: the guest's agent did not answer within 60 s" in outcome.message
    else:
        assert outcome == 7


@pytest.mark.long
async def test_a_hundredth_of_a_cpu(raw: RawShim) -> None:
    """It is the container's program that is slow, half a minute under emulation, and not what starts it."""
    container = raw.bundle("sh", "-c", "exit 7")
    spec = json.loads((raw.path(container) / "config.json").read_text())
    cpu = {"quota": 1000, "period": 100_000}
    changed(raw, container, linux={**spec["linux"], "resources": {**spec["linux"].get("resources", {}), "cpu": cpu}})
    assert await run(raw, container, timeout=60) == 7


def test_a_fork_bomb(containerd: PrivateContainerd) -> None:
    """It does not end the sandbox, and can be removed: on an idle host in less than ten seconds."""
    container = unique_id(TEST_PREFIX)
    bomb = "bomb() { bomb | bomb & }; bomb; sleep 600"
    containerd.ctr("run", "--detach", "--runtime", RUNTIME, BUSYBOX, container, "sh", "-c", bomb)
    eventually(lambda: _processes(containerd, container), "it goes off", lambda seen: seen > 200)
    time.sleep(2)  # and goes on
    assert "RUNNING" in containerd.ctr("task", "ls").stdout
    containerd.ctr("task", "delete", "--force", container, timeout=40)
    containerd.ctr("container", "delete", container)


def _processes(containerd: PrivateContainerd, container: str) -> int:
    return len(containerd.ctr("task", "ps", container, check=False).stdout.splitlines())


async def test_two_deletes_of_an_exec_at_once(raw: RawShim) -> None:
    container = raw.bundle("sleep", "600")
    client = await raw.task(container)
    await client.call("Create", raw.create_request(container), timeout=120)
    await client.call("Start", task.StartRequest(id=container), timeout=60)
    spec = {"type_url": "x", "value": json.dumps(raw.exec_spec("true")).encode()}
    await client.call("Exec", task.ExecProcessRequest(id=container, exec_id="e", spec=spec), timeout=60)
    await client.call("Start", task.StartRequest(id=container, exec_id="e"), timeout=60)
    await client.call("Wait", task.WaitRequest(id=container, exec_id="e"), timeout=60)
    request = task.DeleteRequest(id=container, exec_id="e")
    first, second = await asyncio.gather(
        *(client.call("Delete", request, timeout=60) for _ in range(2)), return_exceptions=True
    )
    assert {type(first), type(second)} == {task.DeleteResponse, StatusError}
    refused = first if isinstance(first, StatusError) else second
    assert isinstance(refused, StatusError)
    assert refused.code == Code.NOT_FOUND
