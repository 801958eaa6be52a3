"""The root of a container over 9p, which has a device of its own: whose it is, and what the host reads of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.containerd import unique_id
from tests.support.fileways import Files, in_pod
from tests.support.leaks import TEST_PREFIX

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this"), pytest.mark.timeout(240)]

OVER_9P = pytest.mark.parametrize("way", ["virtio-9p"])
#: Where the first container writes and the others look: a file of the image.
FILE = "/etc/services"


@contextmanager
def container(files: Files, pod: str, *, kind: str = "container", container_id: str = "") -> Iterator[str]:
    """A container of a pod that waits."""
    container_id = container_id or unique_id(TEST_PREFIX)
    options = (*files.options(), *in_pod(pod, kind))
    files.containerd.ctr("run", "-d", *options, files.image, container_id, "/bin/sleep", "1000", timeout=100)
    try:
        yield container_id
    finally:
        files.containerd.ctr("task", "delete", "--force", container_id, timeout=60)
        files.containerd.ctr("container", "delete", container_id, timeout=60)


def says(files: Files, container_id: str, script: str) -> str:
    """What a shell in a container prints."""
    command = ("task", "exec", "--exec-id", unique_id("exec"), container_id, "/bin/sh", "-c", script)
    return files.containerd.ctr(*command, timeout=60).stdout


def device(files: Files, container_id: str) -> str:
    """The device that a container's root is on."""
    return says(files, container_id, "cat /proc/mounts").split()[0]


@OVER_9P
def test_containers_on_the_same_layers_have_roots_of_their_own(files: Files) -> None:
    """Their files have equal inode numbers on the host, by which the guest knows those of the device for a root."""
    pod = unique_id(TEST_PREFIX)
    with container(files, pod, kind="sandbox", container_id=pod), container(files, pod) as other:
        with container(files, pod) as first:
            assert [device(files, name) for name in (pod, other, first)] == ["kataShared", "kataRoot", "kataShared"]
            content = says(files, pod, f"cat {FILE}")
            for name in (other, first, pod):
                assert says(files, name, f"cat {FILE}") == content
                says(files, name, f"ls /etc; echo {name} >> {FILE}; mkdir /etc/{name}")
            for name in (other, first, pod):
                assert says(files, name, f"cat {FILE}") == f"{content}{name}\n"
                assert says(files, name, f"cd /etc; echo {TEST_PREFIX}*") == f"{name}\n"


@OVER_9P
def test_the_next_container_gets_the_device_and_nothing_of_the_last_one(files: Files) -> None:
    pod = unique_id(TEST_PREFIX)
    with container(files, pod, kind="sandbox", container_id=pod):
        content = says(files, pod, f"cat {FILE}")
        for _ in range(3):
            with container(files, pod) as name:
                assert device(files, name) == "kataRoot"
                assert says(files, name, f"cat {FILE}") == content
                says(files, name, f"echo {name} > {FILE}")


@OVER_9P
def test_the_host_reads_all_that_was_written_once_the_task_is_deleted(files: Files) -> None:
    """Also what was mapped, and what is in files that were open until the end."""
    name, script = (
        unique_id(TEST_PREFIX),
        "import os, mmap\nos.mkdir('/srv')\n"
        "open('/srv/closed', 'w').write('closed' * 100000)\n"
        "file = open('/srv/mapped', 'w+b')\n"
        "file.truncate(1 << 20)\n"
        "mmap.mmap(file.fileno(), 0)[-6:] = b'mapped'\n"
        "os.write(os.open('/srv/open', os.O_CREAT | os.O_WRONLY), b'opened' * 100000)\n"
        "os._exit(0)\n",
    )
    files.containerd.ctr("run", *files.options(), files.image, name, "/usr/bin/python3", "-c", script, timeout=100)
    try:
        written = files.containerd.upper(name) / "srv"
        assert (written / "closed").read_bytes() == b"closed" * 100000
        assert (written / "open").read_bytes() == b"opened" * 100000
        assert (written / "mapped").read_bytes() == bytes((1 << 20) - 6) + b"mapped"
    finally:
        files.containerd.ctr("container", "delete", name, timeout=60)
