"""What is named in the log because the guest does not get it."""

from __future__ import annotations

from kata.oci import left_out
from kata.oci.capabilities import unknown_of
from kata.oci.spec import Spec


def test_fields_of_newer_specifications() -> None:
    spec: Spec = {
        "ociVersion": "1.3.0",
        "process": {
            "args": ["true"],
            "ioPriority": {"class": "IOPRIO_CLASS_IDLE"},
            "execCPUAffinity": {"initial": "0"},
            "capabilities": {"bounding": ["CAP_KILL", "CAP_FUTURE"], "permitted": ["CAP_FUTURE"]},
        },
        "linux": {"netDevices": {"eth1": {}}, "memoryPolicy": {"mode": "MPOL_BIND"}},  # type: ignore[typeddict-unknown-key]
        "vm": {"hypervisor": {"path": "/usr/bin/other"}},
    }
    assert sorted(left_out.of_spec(spec)) == [
        "linux.memoryPolicy",
        "linux.netDevices",
        "process.capabilities: CAP_FUTURE",
        "process.execCPUAffinity",
        "process.ioPriority",
        "vm",
    ]


def test_nothing_is_named_that_arrives() -> None:
    assert left_out.of_spec({"ociVersion": "1.2.1", "process": {"capabilities": {"bounding": ["CAP_BPF"]}}}) == []
    assert left_out.of_process({"args": ["true"]}) == []
    assert left_out.of_resources({"memory": {"limit": 1}}) == []


def test_all_capabilities_of_linux_6_are_known() -> None:
    names = ["CAP_CHOWN", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE", "cap_kill"]
    assert unknown_of({"bounding": names}) == []
