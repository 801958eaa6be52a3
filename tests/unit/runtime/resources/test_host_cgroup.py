"""Where a sandbox's processes are on the host: groups from a spec's path, and limits in a made-up tree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kata.errors import InvalidArgument
from kata.linux.hierarchies import CgroupLimits, Hierarchy
from kata.runtime.ledger.journal import Ledger
from kata.runtime.resources.host_cgroup import CgroupPaths, HostCgroup, expand, plan_cgroups


def spec(path: str) -> Any:
    return {"linux": {"cgroupsPath": path}}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/kubepods/pod1/abc", "/kubepods/pod1/abc"),
        ("default//abc/", "/default/abc"),
        ("user.slice:cri-containerd:abc", "/user.slice/cri-containerd-abc.scope"),
        ("kubepods-burstable-pod1.slice:cri:abc", "/kubepods.slice/kubepods-burstable.slice"
         "/kubepods-burstable-pod1.slice/cri-abc.scope"),
        ("::abc", "/system.slice/abc.scope"),
        ("-.slice:x:abc", "/x-abc.scope"),
        ("a.slice:x:pod.slice", "/a.slice/pod.slice"),
    ],
)  # fmt: skip
def test_where_a_path_leads(text: str, path: str) -> None:
    assert expand(text) == path


@pytest.mark.parametrize("text", ["/", "/a/../b", "a/./b", "/a\nb", "/" + "x" * 2000, "a:b:c.scope", "-a.slice:x:y"])
def test_a_path_that_leads_nowhere(text: str) -> None:
    with pytest.raises(InvalidArgument, match="cgroupsPath"):
        expand(text)


def test_with_and_without_the_overhead() -> None:
    assert plan_cgroups("box", spec("/pods/box"), sandbox_cgroup_only=True) == CgroupPaths("/pods/box", None)
    assert plan_cgroups("box", spec("/pods/box"), sandbox_cgroup_only=False) == CgroupPaths(
        "/pods/box", "/kata_overhead/box"
    )
    assert plan_cgroups("box", {}, sandbox_cgroup_only=True) == CgroupPaths("/vc/box", None)


@pytest.mark.parametrize("version", [1, 2])
def test_limits_go_to_the_files_that_there_are(tmp_path: Path, version: int) -> None:
    controllers = frozenset(("memory",)) if version == 1 else frozenset[str]()
    wanted = {1: {"memory.limit_in_bytes": "4096"}, 2: {"cpu.max": "50000 100000", "memory.max": "4096"}}[version]
    directory = tmp_path / "hierarchy/pods/box"
    directory.mkdir(parents=True)
    for name in wanted:
        (directory / name).touch()
    ledger = Ledger(str(tmp_path / "state"))
    hierarchy = Hierarchy(str(tmp_path / "hierarchy"), controllers)
    group = HostCgroup(CgroupPaths("/pods/box", None), ledger, [hierarchy])
    group.limit(CgroupLimits(cpu_milli=500, cpus="0", memory=4096))
    assert {path.name: path.read_text() for path in directory.iterdir()} == wanted
    assert not group.separates_vcpus
    ledger.release()


def test_a_host_without_groups_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(str(tmp_path / "state"))
    group = HostCgroup(CgroupPaths("/pods/box", "/kata_overhead/box"), ledger, [])
    group.enter()
    assert "no cgroups are mounted" in caplog.text
    assert group.paths is None
    assert not group.separates_vcpus
    group.limit(CgroupLimits(memory=1))
    group.confine(1, [1])
    assert ledger.held == ()
    ledger.release()
