"""Programs that people run, on files by each way that they come: databases, git, packages, archives, watchers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.containerd import PrivateContainerd
from tests.support.fileways import RUNC, Files
from tests.support.packages import programs_archive
from tests.support.realprograms import PROGRAMS

pytestmark = [
    pytest.mark.containerd,
    pytest.mark.usefixtures("nothing_left_by_this"),
    pytest.mark.long,
    pytest.mark.timeout(1800),
]

#: Where a program is tried with many files.
FILES = 10_000
IMAGE = "docker.io/library/programs:test"
#: What programs miss, by the way that files come and the place; see docs/limitations.md.
MISSED = {("virtio-9p", "/a/files"): {"a file watcher of Python", "a file watcher of Node"}}
#: Programs that have a test of their own, as they take minutes over 9p; the others follow each other in one container.
ALONE = ("git", "a tree as npm makes it", "apt", "PostgreSQL, killed and recovered")


@pytest.fixture(scope="module")
def image(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> str:
    containerd.import_image(programs_archive(tmp_path_factory.mktemp("programs") / "programs.tar", IMAGE))
    return IMAGE


@pytest.mark.parametrize(
    ("way", "directory"),
    [
        (RUNC, "/srv/files"),
        ("layers, disk", "/srv/files"),
        ("virtio-fs", "/a/files"),
        ("virtio-fs", "/srv/files"),
        ("virtio-9p", "/a/files"),
        ("virtio-9p", "/srv/files"),
    ],
)
@pytest.mark.parametrize(
    "names",
    [*((name,) for name in ALONE), tuple(name for name in PROGRAMS if name not in ALONE)],
    ids=[*ALONE, "the others"],
)
def test_programs(
    containerd: PrivateContainerd, image: str, way: str, directory: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    files = Files(containerd, image, way, tmp_path)
    report = files.run("realprograms", (directory, str(FILES), *names), timeout=1700)
    print(way, directory, json.dumps(report))  # noqa: T201
    found = report["found"]
    assert set(found) == set(names)
    assert {name for name, said in found.items() if said is not True} == MISSED.get((way, directory), set()) & set(
        names
    )
