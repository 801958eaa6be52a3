from __future__ import annotations

import pytest

from kata.agent_ctl.completion import complete


def texts(line: str) -> list[str]:
    return [candidate.text for candidate in complete(line)]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("Memh", ["MemHotplugByProbe"]),
        ("re", ["ReadStderr", "ReadStdout", "RemoveContainer", "RemoveStaleVirtiofsShareMounts", "ReseedRandomDev",
                "ResizeVolume", "ResumeContainer", "repeat"]),
        ("help Wa", ["WaitProcess"]),
        ("OnlineCPUMem n", ["nb_cpus="]),
        ("OnlineCPUMem wait=true c", ["cpu_only="]),
        ("OnlineCPUMem wait=", ["true", "false"]),
        ("CreateSandbox s", ["storages[0].", "sandbox_pidns=", "sandbox_id=", "sid="]),
        ("CreateSandbox storages[3].fs", ["fstype=", "fs_group."]),
        ("CreateSandbox storages[0].fs_group.group_change_policy=o", ["OnRootMismatch"]),
        ("UpdateInterface interface.s", ["sysctls["]),
        ("attach e", ["exec_id="]),
        ("CreateContainer sp", ["spec=file://"]),
        ("Frobnicate x", []),
        ("CreateSandbox nothing.x", []),
        ("sleep ", []),
    ],
)  # fmt: skip
def test_what_may_follow(line: str, wanted: list[str]) -> None:
    assert texts(line) == wanted


def test_candidates_say_what_they_are() -> None:
    (candidate,) = complete("UpdateInterface interface.IPAddresses[0].fam")
    assert candidate == ("family=", 3, "enum IPFamily (v4, v6)")


def test_nothing_that_is_typed_breaks_it() -> None:
    for text in ("a[", "=", "a.=.", "[", ".", "interface..", "interface.IPAddresses[", "\x00"):
        complete(f"UpdateInterface {text}")
