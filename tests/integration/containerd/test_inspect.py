"""`kata list` and `kata inspect` of a sandbox of containerd's: while it runs, and after its VM has died."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX
from tests.support.waiting import eventually

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

KATA = str(Path(sys.executable).with_name("kata"))
_TIMEOUT_S = 60.0


def kata(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run([KATA, *arguments], check=check, capture_output=True, text=True, timeout=_TIMEOUT_S)


def inspect(container_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kata("inspect", container_id).stdout)
    return found


def test_a_life(containerd: PrivateContainerd) -> None:
    container_id = unique_id(TEST_PREFIX)
    containerd.ctr("run", "--detach", "--runtime", RUNTIME, BUSYBOX, container_id, "sleep", "600")
    containerd.ctr("task", "exec", "--detach", "--exec-id", "e", container_id, "sh", "-c", "exit 3")
    found = eventually(
        lambda: inspect(container_id), "the exec's end", lambda seen: seen["containers"][0]["execs"][0]["exited_at"]
    )
    assert (found["id"], found["namespace"], found["engine"]) == (container_id, containerd.namespace, "containerd")
    assert (found["state"], found["why_ended"]) == ("running", "")
    assert found["pid"] in containerd.shims()
    assert found["vm"]["memory_mib"] >= 512
    (container,) = found["containers"]
    assert (container["id"], container["state"], container["exit_status"]) == (container_id, "running", None)
    assert [(one["id"], one["state"], one["exit_status"]) for one in container["execs"]] == [("e", "stopped", 3)]
    assert {"qemu", "create", "start"} & {phase["name"] for phase in found["start_phases"]}
    line = next(line for line in kata("list").stdout.splitlines() if container_id in line)
    assert line.split()[1:6] == ["containerd", containerd.namespace, "-", "running", "1/1"]
    assert f"{container_id}@{containerd.namespace}" in kata("list", "-q").stdout.splitlines()

    containerd.kill_sandbox(container_id, shim=False, vm=True)
    found = eventually(lambda: inspect(container_id), "its end is known", lambda seen: seen["why_ended"])
    assert found["state"] == "stopped"
    assert "was killed by signal 9" in found["why_ended"]
    assert found["vm"]["pid"] == 0
    found = eventually(
        lambda: inspect(container_id), "and its container's", lambda seen: seen["containers"][0]["exited_at"]
    )
    assert (found["containers"][0]["state"], found["containers"][0]["exit_status"]) == ("stopped", 137)
    containerd.ctr("task", "delete", container_id, check=False)
    containerd.ctr("container", "delete", container_id)
    gone = kata("inspect", container_id, check=False)
    assert gone.returncode == 1
    assert gone.stderr.startswith(f"kata: sandbox {container_id} does not exist\nhint: ")
