"""VMs in standby, taken over by sandboxes that containerd starts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata.linux.mount import MS_PRIVATE, MS_REC, mount
from kata.linux.namespaces import inside_new_mounts
from kata.runtime.launch.timings import read
from kata.runtime.ledger.journal import STATE_ROOT
from kata.runtime.ledger.processes import processes_of
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX, busybox_archive
from tests.support.leaks import TEST_PREFIX
from tests.support.pool import children, pool, standbys, wait_ready
from tests.support.waiting import eventually

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]


@pytest.fixture(scope="module")
def containerd(configuration: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateContainerd]:
    """On a host with sandboxes of its own: a pool is for all of a host, also for those of other workers' tests."""
    archive = busybox_archive(tmp_path_factory.mktemp("image") / "busybox.tar")
    Path(STATE_ROOT).mkdir(parents=True, exist_ok=True)
    with inside_new_mounts():
        mount("none", "/", flags=MS_PRIVATE | MS_REC)
        mount("tmpfs", STATE_ROOT, "tmpfs")
        with PrivateContainerd(environment={"KATA_CONF_FILE": str(configuration)}, debug=True) as containerd:
            assert containerd.import_image(archive) == [BUSYBOX]
            yield containerd


@pytest.fixture(autouse=True)
def on_that_host(containerd: PrivateContainerd) -> None:
    """Also where only the pool is started."""


@contextmanager
def running(containerd: PrivateContainerd, *flags: str) -> Iterator[str]:
    sandbox = unique_id(TEST_PREFIX)
    containerd.ctr("run", "-d", "--runtime", RUNTIME, *flags, BUSYBOX, sandbox, "sleep", "1000")
    try:
        yield sandbox
    finally:
        containerd.ctr("task", "rm", "-f", sandbox)
        containerd.ctr("container", "rm", sandbox)


def phases(containerd: PrivateContainerd, sandbox: str) -> list[str]:
    return [phase.name for phase in read(containerd.state(sandbox)).phases]


def hostname(containerd: PrivateContainerd, sandbox: str) -> str:
    return containerd.ctr("task", "exec", "--exec-id", unique_id("e"), sandbox, "hostname").stdout.strip()


def test_a_sandbox_takes_the_vm_and_another_one_is_made(containerd: PrivateContainerd, configuration: Path) -> None:
    with pool("--config", str(configuration)):
        first = wait_ready()
        with running(containerd) as sandbox:
            assert "standby" in phases(containerd, sandbox)
            assert "qemu" not in phases(containerd, sandbox)
            assert hostname(containerd, sandbox) == sandbox
            assert list(processes_of(str(first)))
            second = wait_ready()
            assert second != first
        assert not first.exists()
        done = containerd.ctr(
            "run", "--rm", "--runtime", RUNTIME, BUSYBOX, unique_id(TEST_PREFIX), "sh", "-c", "exit 7", check=False
        )
        assert done.returncode == 7, done.stderr
        assert not second.exists()


def test_a_sandbox_that_needs_another_vm_starts_without(containerd: PrivateContainerd, configuration: Path) -> None:
    with pool("--config", str(configuration)):
        first = wait_ready()
        with running(containerd, "--memory-limit", str(64 << 20)) as sandbox:
            assert "standby" not in phases(containerd, sandbox)
            assert hostname(containerd, sandbox) == sandbox
            assert not first.exists()


def test_sandboxes_outlive_the_pool_and_vms_in_standby_do_not(
    containerd: PrivateContainerd, configuration: Path
) -> None:
    with pool("--config", str(configuration)) as process:
        wait_ready()
        with running(containerd) as sandbox:
            assert "standby" in phases(containerd, sandbox)
            wait_ready()
            process.kill()
            process.wait(10)
            eventually(standbys, "only the sandbox's own is there", lambda left: len(left) == 1)
            assert hostname(containerd, sandbox) == sandbox


def test_a_killed_shim_from_standby_leaves_nothing(containerd: PrivateContainerd, configuration: Path) -> None:
    with pool("--config", str(configuration)):
        directory = wait_ready()
        sandbox = unique_id(TEST_PREFIX)
        containerd.ctr("run", "-d", "--runtime", RUNTIME, BUSYBOX, sandbox, "sleep", "1000")
        assert "standby" in phases(containerd, sandbox)
        vm = int(containerd.ctr("task", "ls").stdout.split(sandbox)[1].split()[0])
        os.kill(int(Path(f"/proc/{vm}/stat").read_text().rsplit(")", 1)[1].split()[1]), signal.SIGKILL)
        held = (containerd.state(sandbox), directory)
        eventually(lambda: not any(path.exists() for path in held), "all is given back")
        containerd.ctr("task", "rm", "-f", sandbox, check=False)
        containerd.ctr("container", "rm", sandbox)


@pytest.mark.parametrize("after_ms", [0, 1, 2, 4, 8])
def test_a_pool_that_has_just_begun_a_vm_ends_with_it(configuration: Path, after_ms: int) -> None:
    with pool("--config", str(configuration)) as process:
        children(process.pid)
        time.sleep(after_ms / 1000)
    assert not standbys()


def test_a_killed_process_in_standby_leaves_nothing(configuration: Path) -> None:
    with pool("--config", str(configuration)) as process:
        directory = wait_ready()
        (member,) = children(process.pid)
        os.kill(member, signal.SIGKILL)
        eventually(lambda: not directory.exists(), "all is given back")
        assert not list(processes_of(str(directory)))


def test_the_next_pool_gives_back_what_a_killed_one_left(configuration: Path) -> None:
    with pool("--config", str(configuration)) as process:
        left = wait_ready()
        members = children(process.pid)
        os.kill(process.pid, signal.SIGSTOP)  # it would tidy up after the other
        for pid in (*members, process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait(10)
        assert left.exists()
        with pool("--config", str(configuration)):
            eventually(lambda: not left.exists(), "all is given back")
