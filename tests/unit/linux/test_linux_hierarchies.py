"""The host's control groups: found in made-up mount tables, and the files that limits become in either version."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from kata.linux import hierarchies, mountinfo
from kata.linux.hierarchies import CgroupLimits, Hierarchy

V1 = """\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 /docker/abc /sys/fs/cgroup/me\\040mory rw - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset,noprefix,cpuset_v2_mode
"""
UNIFIED = "35 30 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
CPU = Hierarchy("/sys/fs/cgroup/cpu,cpuacct", frozenset(("cpu", "cpuacct")))
MEMORY = Hierarchy("/sys/fs/cgroup/me mory", frozenset(("memory",)), "/docker/abc")
CPUSET = Hierarchy("/sys/fs/cgroup/cpuset", frozenset(("cpuset",)))
V2 = Hierarchy("/sys/fs/cgroup/unified")


@pytest.mark.parametrize(
    ("table", "found"),
    [(V1, (CPU, MEMORY, CPUSET)), (V1 + UNIFIED, (CPU, MEMORY, CPUSET)), (UNIFIED, (V2,)), (V1.split("\n")[0], ())],
    ids=["version 1", "hybrid counts as version 1", "version 2", "none"],
)
def test_what_is_mounted(tmp_path: Path, table: str, found: tuple[Hierarchy, ...]) -> None:
    (tmp_path / "mountinfo").write_text(table)
    assert hierarchies.mounted(str(tmp_path / "mountinfo")) == found


def test_the_group_of_a_process_is_told_from_where_its_hierarchy_is_mounted(tmp_path: Path) -> None:
    file = tmp_path / "cgroup"
    file.write_text("4:memory:/docker/abc/inner\n3:cpu,cpuacct:/user.slice\n1:name=systemd:/init.scope\n0::/all\n")
    own = hierarchies.own_groups((CPU, MEMORY, CPUSET, V2), str(file))
    assert own == {CPU: "/user.slice", MEMORY: "/inner", CPUSET: "/", V2: "/all"}
    file.write_text("4:memory:/elsewhere\n")
    assert hierarchies.own_groups((MEMORY,), str(file)) == {MEMORY: "/"}


@pytest.mark.parametrize(
    ("limits", "one", "two"),
    [
        (
            CgroupLimits(),
            ["cpu.cfs_period_us 100000", "cpu.cfs_quota_us -1", "memory.limit_in_bytes -1"],
            ["cpu.max max 100000", "memory.max max"],
        ),
        (
            CgroupLimits(1500, 1024, "0-1", 1 << 30),
            [
                *("cpu.cfs_period_us 100000", "cpu.cfs_quota_us 150000", "cpu.shares 1024"),
                *("memory.limit_in_bytes 1073741824", "cpuset.cpus 0-1"),
            ],
            ["cpu.max 150000 100000", "cpu.weight 39", "memory.max 1073741824", "cpuset.cpus 0-1"],
        ),
        (
            CgroupLimits(cpu_shares=1),
            ["cpu.cfs_period_us 100000", "cpu.cfs_quota_us -1", "cpu.shares 2", "memory.limit_in_bytes -1"],
            ["cpu.max max 100000", "cpu.weight 1", "memory.max max"],
        ),
        (
            CgroupLimits(cpu_shares=1 << 30),
            ["cpu.cfs_period_us 100000", "cpu.cfs_quota_us -1", "cpu.shares 262144", "memory.limit_in_bytes -1"],
            ["cpu.max max 100000", "cpu.weight 10000", "memory.max max"],
        ),
    ],
)
def test_files_of_limits(limits: CgroupLimits, one: list[str], two: list[str]) -> None:
    for unified, expected in ((False, one), (True, two)):
        assert [f"{file} {text}" for _, file, text in hierarchies.limit_files(limits, unified=unified)] == expected


@pytest.fixture
def unified() -> Hierarchy:
    """This host's version 2, beside version 1 or alone."""
    mounts = [mount.point for mount in mountinfo.read() if mount.fstype == "cgroup2"]
    if not mounts or not os.access(mounts[0], os.W_OK):
        pytest.skip("needs a writable cgroup2 mount")
    return Hierarchy(mounts[0])


@pytest.mark.root
def test_a_process_moves_into_a_group_of_version_2_and_out_again(unified: Hierarchy) -> None:
    group = f"/kata-test-{os.getpid()}/inner"
    home = hierarchies.own_groups((unified,))[unified]
    made = hierarchies.missing(unified, group)
    assert [os.path.relpath(one, unified.mount) for one in made] == [group[1:].partition("/")[0], group[1:]]
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(0)
    try:
        for directory in made:
            hierarchies.make(unified, directory)
            hierarchies.make(unified, directory)
        assert hierarchies.missing(unified, group) == []
        hierarchies.join(unified, group, child)
        assert Path(unified.directory(group), "cgroup.procs").read_text() == f"{child}\n"
        hierarchies.join(unified, home, child)
        assert Path(unified.directory(group), "cgroup.procs").read_text() == ""
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for directory in reversed(made):
            os.rmdir(directory)
    hierarchies.join(unified, home, child)  # it has ended
