"""Entering and leaving a host cgroup beside other things, on hierarchies in a directory of the test's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kata.errors import FailedPrecondition
from kata.linux.hierarchies import Hierarchy
from kata.runtime.ledger.journal import Ledger
from kata.runtime.resources.host_cgroup import CgroupPaths, HostCgroup
from kata.runtime.resources.membership import Membership

PATHS = CgroupPaths("/pods/box", None)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "box"))


@pytest.fixture
def hierarchy(tmp_path: Path) -> Hierarchy:
    """Where joining a cgroup is a line in its cgroup.procs. Unlike the kernel's, it has only who joined last."""
    for name in ("", "pods", "pods/box"):
        (tmp_path / "cgroup" / name).mkdir()
        (tmp_path / "cgroup" / name / "cgroup.procs").touch()
    return Hierarchy(str(tmp_path / "cgroup"), frozenset())


def members(hierarchy: Hierarchy, path: str) -> list[str]:
    return Path(hierarchy.directory(path), "cgroup.procs").read_text().split()


async def test_it_enters_at_once_and_leaves_when_told(hierarchy: Hierarchy, ledger: Ledger) -> None:
    membership = Membership(HostCgroup(PATHS, ledger, [hierarchy]))
    await membership.entered()
    (last,) = members(hierarchy, "/pods/box")
    assert last in (str(os.getpid()), *Path("/proc/thread-self/children").read_text().split())
    leaving = membership.begin_leaving()
    assert membership.begin_leaving() is leaving
    await membership.leave()
    assert leaving.done()
    assert members(hierarchy, "/"), "back where it was, or at the root"
    ledger.close()


async def test_it_leaves_though_it_has_not_waited_to_be_in(hierarchy: Hierarchy, ledger: Ledger) -> None:
    membership = Membership(HostCgroup(PATHS, ledger, [hierarchy]))
    await membership.leave()
    assert members(hierarchy, "/")
    await membership.entered()
    ledger.close()


async def test_a_cgroup_that_cannot_be_made(tmp_path: Path, ledger: Ledger) -> None:
    (tmp_path / "file").touch()
    membership = Membership(HostCgroup(PATHS, ledger, [Hierarchy(str(tmp_path / "file"), frozenset())]))
    with pytest.raises(FailedPrecondition, match="cgroup /pods/box: "):
        await membership.entered()
    await membership.leave()
    ledger.close()
