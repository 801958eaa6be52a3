"""Volumes laid out as kubelet lays them out, in containers of a real containerd."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.linux import mount
from tests.support import oracle
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

_DEADLINE_S = 30.0


def volume(root: Path, plugin: str) -> Path:
    path = root / "pods/0000/volumes" / f"kubernetes.io~{plugin}" / "data"
    path.mkdir(parents=True)
    return path


def run(containerd: PrivateContainerd, source: Path, script: str, options: str = "rbind:rw") -> str:
    done = containerd.ctr(*arguments(source, unique_id(TEST_PREFIX), script, options), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def arguments(source: Path, container_id: str, script: str, options: str) -> list[str]:
    mounted = f"type=bind,src={source},dst=/data,options={options}"
    return ["run", "--rm", "--runtime", RUNTIME, "--mount", mounted, BUSYBOX, container_id, "sh", "-c", script]


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    source = volume(tmp_path, "empty-dir")
    mount.mount("tmpfs", str(source), "tmpfs", 0, "size=4m,mode=0777")
    yield source
    mount.umount(str(source))


def test_an_empty_dir_on_disk_is_the_hosts(containerd: PrivateContainerd, tmp_path: Path) -> None:
    source = volume(tmp_path, "empty-dir")
    assert run(containerd, source, "echo hello > /data/file; grep -c '/data virtiofs' /proc/mounts") == "1\n"
    assert (source / "file").read_text() == "hello\n"


def test_an_empty_dir_in_memory_is_the_guests_and_has_its_size(containerd: PrivateContainerd, in_memory: Path) -> None:
    script = (
        "grep -c '/data tmpfs' /proc/mounts; stat -c %a /data; dd if=/dev/zero of=/data/x bs=1M count=8 2>/dev/null "
        "|| echo full; stat -c %s /data/x"
    )
    assert run(containerd, in_memory, script).split() == ["1", "777", "full", str(4 << 20)]
    assert os.listdir(in_memory) == []


def test_an_update_of_a_configmap_is_seen_by_who_reads(containerd: PrivateContainerd, tmp_path: Path) -> None:
    source = volume(tmp_path, "configmap")
    (source / "..1").mkdir()
    (source / "..1/key").write_text("one")
    (source / "..1/empty").touch()
    os.symlink("..1", source / "..data")
    for name in ("key", "empty"):
        os.symlink(f"..data/{name}", source / name)
    # On a tmpfs the kernel tells watchers of every change; Debian's busybox has no `inotifyd` to show it with.
    script = (
        "grep -c '/data tmpfs' /proc/mounts; cat /data/key /data/empty; echo; echo ready; "
        'for i in $(seq 200); do [ "$(cat /data/key)" = two ] && break; sleep 0.1; done; cat /data/key'
    )
    ctr = [*containerd.ctr_command(*arguments(source, unique_id(TEST_PREFIX), script, "rbind:ro"))]
    process = subprocess.Popen(ctr, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert [process.stdout.readline().strip() for _ in range(3)] == ["1", "one", "ready"]
        (source / "..2").mkdir()
        (source / "..2/key").write_text("two")
        (source / "..2/empty").touch()
        os.symlink("..2", source / "..data_tmp")
        os.rename(source / "..data_tmp", source / "..data")
        rest, errors = process.communicate(timeout=_DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    assert rest == "two", errors


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host's in which mounts are made later."""
    path = tmp_path / "shared"
    path.mkdir()
    subprocess.run(["mount", "--bind", str(path), str(path)], check=True)
    subprocess.run(["mount", "--make-shared", str(path)], check=True)
    (path / "later").mkdir()
    try:
        yield path
    finally:
        subprocess.run(["umount", "--recursive", str(path)], check=True)


@pytest.mark.parametrize("runtime", [RUNTIME, oracle.RUNC], ids=["kata", "runc"])
def test_a_mount_that_the_host_makes_later_is_seen(containerd: PrivateContainerd, shared: Path, runtime: str) -> None:
    """Kubernetes' HostToContainer: storage drivers mount into a volume while containers run."""
    name = unique_id(TEST_PREFIX)
    mount = f"type=bind,src={shared},dst=/data,options=rbind:rslave:rw"
    containerd.ctr("run", "-d", "--runtime", runtime, "--mount", mount, BUSYBOX, name, "sleep", "600")
    try:
        subprocess.run(["mount", "-t", "tmpfs", "late", str(shared / "later")], check=True)
        (shared / "later/file").write_text("mounted later\n")

        def see(script: str) -> str:
            return containerd.ctr("task", "exec", "--exec-id", unique_id("e"), name, "sh", "-c", script).stdout

        assert oracle.answer(runtime, lambda: see("cat /data/later/file")) == "mounted later\n"
        see("echo from inside >/data/later/answer")
        assert (shared / "later/answer").read_text() == "from inside\n"
        subprocess.run(["umount", str(shared / "later")], check=True)
        assert see("ls /data/later") == ""
    finally:
        containerd.ctr("task", "rm", "--force", name)
        containerd.ctr("container", "rm", name)
