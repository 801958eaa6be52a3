"""Hooks on the host: what they get, their order, their failures, their deadlines, and nothing left of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kata.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from kata.oci.spec import Bundle
from kata.runtime.ledger.processes import processes_of
from kata.runtime.network.namespace import PodNetwork
from kata.runtime.sandbox.hooks import HostHooks
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.timeout(30)


def shell(script: str, **fields: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], **fields}


def hooks(directory: Path, network: PodNetwork | None = None, **kinds: list[dict[str, Any]]) -> HostHooks:
    spec: Any = {"ociVersion": "1.0.2", "hooks": kinds, "annotations": {"a": "b"}}
    state = directory / "state"
    state.mkdir()
    return HostHooks("c1", Bundle(directory, spec, directory / "rootfs"), str(state), network)


async def test_they_run_in_their_order_with_the_state(tmp_path: Path) -> None:
    wanted = hooks(
        tmp_path,
        createRuntime=[shell("echo second >>order")],
        prestart=[shell("cat >state.json; echo $WORD >>order", env=["PATH=/bin", "WORD=first=1"])],
        poststop=[shell("echo never >>order")],
    )
    await wanted.run(*wanted.before_creation, status="creating", pid=7)
    assert (tmp_path / "order").read_text() == "first=1\nsecond\n"
    assert json.loads((tmp_path / "state.json").read_text()) == {
        "ociVersion": "1.1.0",
        "id": "c1",
        "status": "creating",
        "pid": 7,
        "bundle": str(tmp_path),
        "annotations": {"a": "b"},
    }


async def test_a_failure_says_what_the_hook_said_and_stops_the_others(tmp_path: Path) -> None:
    wanted = hooks(tmp_path, prestart=[shell("seq 1000; echo no such GPU >&2; exit 3"), shell("touch later")])
    with pytest.raises(
        FailedPrecondition, match=r"prestart hook /bin/sh ended with status 3: 999 \| 1000 \| no such GPU$"
    ):
        await wanted.run("prestart", status="creating", pid=7)
    assert not (tmp_path / "later").exists()


async def test_failures_afterwards_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted = hooks(tmp_path, poststop=[shell("exit 1"), {"path": "/no/such"}, shell("touch later")])
    await wanted.run_after("poststop", status="stopped", pid=0)
    assert (tmp_path / "later").exists()
    assert "poststop hook /bin/sh ended with status 1: no output" in caplog.text
    assert "poststop hook /no/such cannot be run: No such file or directory" in caplog.text


async def test_one_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    wanted = hooks(tmp_path, prestart=[shell("sleep 1000 & sleep 1000", timeout=1)])
    with pytest.raises(DeadlineExceeded, match="did not end within 1 s"):
        await wanted.run("prestart", status="creating", pid=7)
    # Killed, and on its way out.
    await eventually_async(lambda: list(processes_of(wanted.directory)), "its children's end", lambda left: not left)


async def test_a_hook_that_reads_nothing_and_leaves_a_child(tmp_path: Path) -> None:
    wanted = hooks(tmp_path, prestart=[shell("exec 0<&-; sleep 1000 & exit 0")])
    await wanted.run("prestart", status="creating", pid=7)
    (child,) = processes_of(wanted.directory)  # the sandbox's ledger gets it
    os.kill(child, 9)


async def test_a_relative_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="not absolute"):
        await hooks(tmp_path, prestart=[{"path": "sh"}]).run("prestart", status="creating", pid=7)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_only_create_container_runs_in_the_pods_network(tmp_path: Path, network_namespace: str) -> None:
    """As the specification has it: an engine's own hook sets up the host's side, too."""
    kinds = (*HostHooks.before_creation, "poststart", "poststop")
    note = {kind: [shell(f"echo {kind} $(stat -L -c %i /proc/self/ns/net) >>inodes")] for kind in kinds}
    wanted = hooks(tmp_path, PodNetwork(network_namespace), **note)
    await wanted.run(*wanted.before_creation, status="creating", pid=7)
    await wanted.run_after("poststart", status="running", pid=7)
    wanted.run_now("poststop", most=5)
    wanted.close()
    found = dict(line.split() for line in (tmp_path / "inodes").read_text().splitlines())
    pod, home = (os.stat(path).st_ino for path in (network_namespace, "/proc/self/ns/net"))
    assert {kind: int(inode) for kind, inode in found.items()} == dict.fromkeys(kinds, home) | {"createContainer": pod}
