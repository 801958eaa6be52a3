"""KVM, VFIO and vsock for real, on a host made for it: see tests/nested/level1.py. Only `make test-nested` runs it.

The three paths of a device show: the group's number on the host, the one in the guest, the node in the container.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.images import busybox_rootfs

from . import level1

#: Seconds for level 1, less those that this host withholds from it.
_TIMEOUT_S = 900.0

pytestmark = [pytest.mark.vm, pytest.mark.timeout(4 * _TIMEOUT_S)]

_FIRST = b"hello-from-the-host-0"
_EDU = "0000:02:00.0"


def in_level_1(case: str, work: Path) -> list[dict[str, Any]]:
    """Run tests/nested/inside.py there; what it said, line by line."""
    if os.geteuid() or level1.lacking():
        pytest.fail(f"needs root, and of programs: {level1.lacking() or 'nothing'}")
    busybox_rootfs(work / "rootfs")
    level1.put_modules(work, ("kvm-amd", "vhost_vsock"))
    source = Path(__file__).with_name("vfio_read.c")
    subprocess.run(["gcc", "-O1", "-Wall", "-static", "-o", work / "rootfs/vfio_read", source], check=True)
    disk = work / "nvme.img"
    disk.write_bytes(_FIRST.ljust(1 << 20, b"\0"))
    devices = [
        "-drive", f"if=none,id=nvme,file={disk},format=raw", "-device", "nvme,drive=nvme,serial=x1,bus=rp1",
        "-device", "edu,bus=rp2", "-netdev", "user,id=net,restrict=on", "-device", "e1000e,netdev=net,bus=rp3",
    ]  # fmt: skip
    job = [sys.executable, str(Path(__file__).with_name("inside.py")), case]
    seconds = level1.run(work, job, devices, _TIMEOUT_S)
    log = (work / "log").read_text(errors="replace") if (work / "log").exists() else ""
    console = (work / "console").read_text(errors="replace")[-8000:]
    print(f"level 1 ran for {seconds:.0f} s:\n{log}")  # noqa: T201 - the figures are what this is run for
    assert (work / "status").exists(), f"level 1 did not finish: {log}\n{console}"
    assert (work / "status").read_text().strip() == "0", f"{log}\n{console}"
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def outcome(told: list[dict[str, Any]]) -> dict[str, Any]:
    """How the container ended, after the device was seen to be the host's again."""
    facts = next(line for line in told if line["step"] == "ended")
    assert facts["problems"] == [], facts
    assert told[-1]["free"] is True, told
    return facts


def test_sandboxes_run_under_kvm_and_are_restored_from_a_template(tmp_path: Path) -> None:
    told = in_level_1("kvm", tmp_path)
    assert told[0]["obstacle"] is None
    first, second = (line for line in told if line["step"] == "ended")
    for facts in (first, second):
        assert (facts["status"], facts["problems"]) == (0, []), facts
        assert facts["output"].split()[0] == "kvm-clock", facts
    assert first["output"].split()[1] != second["output"].split()[1], "the same randomness in both"
    made, restored = (line["phases"] for line in told if line["step"] == "sandbox")
    assert "template" in made
    assert "first answer" in restored
    assert "boot" not in made + restored


def test_the_guests_kernel_drives_a_disk_and_the_pods_network_card(tmp_path: Path) -> None:
    told = in_level_1("nvme", tmp_path)
    facts = outcome(told)
    assert facts["output"].startswith(f"{_FIRST.decode()}\n"), facts
    assert "No such file" in facts["output"], facts
    sector = (tmp_path / "nvme.img").read_bytes()[512:1024]
    assert sector.rstrip(b"\0") == b"hello-from-level-2\n"
    # The pod's address and route went along with its card, which then was the host's again.
    assert "1 packets received" in facts["output"], facts
    assert "default via 10.0.2.2" in facts["output"], facts
    card = next(line for line in told if line["step"] == "card")
    assert (card["driver"], card["override"]) == ("e1000e", ""), card
    assert card["interface"], card


def test_a_container_drives_a_device(tmp_path: Path) -> None:
    told = in_level_1("edu", tmp_path)
    facts = outcome(told)
    assert facts["status"] == 0, facts
    assert "register 0x010000ed" in facts["output"], facts
    group = next(line for line in told if line["step"] == "bound")["groups"][_EDU]
    names = facts["output"].splitlines()
    assert "vfio" in names
    assert str(group) not in names, "the guest's group has the host's number by chance, which proves nothing"


def test_the_agent_answers_over_vsock_and_sends_its_spans(tmp_path: Path) -> None:
    told = in_level_1("vsock", tmp_path)
    answered = next(line for line in told if line["step"] == "answered")
    assert answered["version"], told
    assert answered["bytes"] == 1 << 20
    traced = next(line for line in told if line["step"] == "traced")
    span = traced["span"]
    assert f"00-{span['trace_id']}-{span['parent_span_id']}-01" == traced["caller"]
    assert (span["name"], span["status"]) == ("grpc.AgentService/CreateSandbox", "unset"), span
    assert span["resource"]["service.name"] == "kata-agent"
    assert told[-1] == {"at": told[-1]["at"], "step": "forwarder", "status": 0}
