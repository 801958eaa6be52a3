"""What a test's marker asks of the host, and which tests run in one process when four run them (`-n 4`).

A test that cannot run here says what is missing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from kata.errors import Internal, Unavailable
from kata.runtime.config.loader import load
from tests.support.packages import containerd_2

pytest_plugins = ["tests.support.failures"]

# On a disk: Debian 13 has /tmp in memory, where files cannot do all that they can on a disk.
tempfile.tempdir = os.environ.setdefault("TMPDIR", "/var/tmp")

# What gRPC does about a fork, by default, has ended one child of fourteen while its threads were busy (clients of CRI).
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# How long an example takes says how busy the host is. A test that sets suppress_health_check has to name this one too.
settings.register_profile("pykata", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pykata")


def _missing(marker: str) -> str | None:
    """What this machine lacks for tests of a marker, or None."""
    if os.geteuid() != 0:
        return "root"
    if marker in ("vm", "containerd"):
        hypervisor = load().config.hypervisor
        for path in (hypervisor.path, hypervisor.kernel, hypervisor.initrd, hypervisor.image):
            if path is not None and not path.exists():
                return f"{path}"
    if marker == "containerd":
        return next((name for name in ("containerd", "ctr", "runc") if shutil.which(name) is None), None)
    return None


#: Each is for one worker of `--dist loadgroup`: the tests share a containerd, or VMs. The largest four begin; the
#: worker that is through with its own takes the next, and the other tests are spread over all. A test is of the first
#: group whose pattern its path matches; what takes long is in several, so that no worker is the last for long.
_GROUPS = {
    "integration/containerd/test_file*": "files",
    "integration/containerd/test_[a-m]*": "containerd-1",
    "integration/containerd/*": "containerd-2",
    "integration/cri/*": "cri",
    "integration/*": "integration",
    "vm/test_agent*": "agent",
    "vm/*": "vm",
}


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = str(item.path.relative_to(Path(__file__).parent))
        if group := next((group for pattern, group in _GROUPS.items() if fnmatchcase(path, pattern)), None):
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def containerd_2_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with containerd 2 of Debian's next release, its ctr and its shim for runc."""
    try:
        return containerd_2(tmp_path_factory.mktemp("containerd-2"))
    except (Unavailable, Internal) as error:
        pytest.skip(f"needs containerd 2 from a Debian mirror: {error}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in ("root", "vm", "containerd"):
        if item.get_closest_marker(marker) and (what := _missing(marker)):
            pytest.skip(f"needs {what}")
