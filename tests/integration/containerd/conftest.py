"""One containerd for all tests, with one image; and a look at what each module left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kata.loop.watch import BLOCKED
from tests.support.containerd import PrivateContainerd
from tests.support.fileways import Files
from tests.support.images import BUSYBOX, busybox_archive
from tests.support.leaks import TEST_PREFIX, assert_nothing_left, snapshot
from tests.support.packages import python_archive
from tests.support.rawshim import RawShim

CONFIGURATION = """\
[hypervisor.qemu]
default_memory = 512
"""


@pytest.fixture(scope="session")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kata") / "configuration.toml"
    path.write_text(CONFIGURATION)
    return path


@pytest.fixture(scope="session")
def containerd(configuration: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateContainerd]:
    archive = busybox_archive(tmp_path_factory.mktemp("image") / "busybox.tar")
    with PrivateContainerd(environment={"KATA_CONF_FILE": str(configuration)}, debug=True) as containerd:
        assert containerd.import_image(archive) == [BUSYBOX]
        yield containerd
        assert [line for line in containerd.log_text().splitlines() if BLOCKED in line] == []


@pytest.fixture
async def raw(configuration: Path) -> AsyncIterator[RawShim]:
    """The shim without a containerd."""
    async with RawShim(TEST_PREFIX, {"KATA_CONF_FILE": str(configuration)}) as raw:
        yield raw


@pytest.fixture(scope="session")
def python_image(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with Python."""
    name = "docker.io/library/python:test"
    containerd.import_image(python_archive(tmp_path_factory.mktemp("python") / "python.tar", name))
    return name


@pytest.fixture
def files(containerd: PrivateContainerd, python_image: str, way: str, tmp_path: Path) -> Files:
    """Containers whose files come by the way that the test names."""
    return Files(containerd, python_image, way, tmp_path)


@pytest.fixture(scope="module", autouse=True)
def nothing_left() -> Iterator[None]:
    """What a module's tests and shared containers held is gone at its end."""
    before = snapshot(f"{TEST_PREFIX}-")
    yield
    assert_nothing_left(before, f"{TEST_PREFIX}-")


@pytest.fixture
def nothing_left_by_this() -> Iterator[None]:
    """For modules that share nothing: each test is held to it by itself."""
    before = snapshot(f"{TEST_PREFIX}-")
    yield
    assert_nothing_left(before, f"{TEST_PREFIX}-")


@pytest.fixture(autouse=True)
def containerd_log(request: pytest.FixtureRequest) -> Iterator[None]:
    """On a failure pytest shows what containerd and the shims logged during the test."""
    if "containerd" not in request.fixturenames:
        yield
        return
    containerd: PrivateContainerd = request.getfixturevalue("containerd")
    begin = len(containerd.log_text())
    yield
    print(containerd.log_text()[begin:][-8000:])  # noqa: T201
