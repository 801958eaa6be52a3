"""The shared tree over virtio-fs: what containers do to files, from a template and without, and the daemon's death."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kata.protocols.containerd import task_v2_pb2
from tests.support.leaks import TEST_PREFIX
from tests.support.rawshim import RawShim
from tests.support.waiting import eventually_async

pytestmark = [
    pytest.mark.containerd,
    pytest.mark.usefixtures("nothing_left_by_this"),
]

CONFIGURATION = """\
[hypervisor.qemu]
default_memory = 512
shared_fs = "virtio-fs"

[factory]
enable_template = {template}
"""
#: Each line a promise of a file system to its users; the first that is broken is the exit status.
SCRIPT = """
grep -q ' / virtiofs ' /proc/mounts || exit 2
echo first >/a && ln /a /b && [ "$(stat -c %h /a)" = 2 ] || exit 3
mv /b /c && [ "$(cat /c)" = first ] || exit 4
mkfifo /fifo && [ -p /fifo ] || exit 5
mknod /null c 1 3 && [ -c /null ] || exit 6
chown 12:34 /c && chmod 4711 /c && [ "$(stat -c '%u %g %a' /a)" = "12 34 4711" ] || exit 7
ln -s a /link && [ "$(readlink /link)" = a ] || exit 8
rm /etc/passwd && [ ! -e /etc/passwd ] || exit 9
dd if=/dev/zero of=/direct bs=4096 count=4 2>/dev/null && [ "$(stat -c %s /direct)" = 16384 ] || exit 10
echo volume >/data/file || exit 11
[ "$(cat /data/host)" = host ] || exit 12
"""


@pytest.fixture
def template() -> bool:
    return True


@pytest.fixture
async def raw(template: bool, tmp_path: Path) -> AsyncIterator[RawShim]:
    path = tmp_path / "configuration.toml"
    path.write_text(CONFIGURATION.format(template=str(template).lower()))
    async with RawShim(TEST_PREFIX, {"KATA_CONF_FILE": str(path)}) as raw:
        yield raw


@pytest.mark.parametrize("template", [True, False], ids=["template", "boot"])
async def test_files(raw: RawShim, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "host").write_text("host\n")
    mount = {"destination": "/data", "type": "bind", "source": str(volume), "options": ["rbind"]}
    container_id = raw.bundle("sh", "-c", SCRIPT, mounts=[mount])
    task = await raw.task(container_id)
    await task.Create(raw.create_request(container_id), timeout=90)
    waiting = asyncio.create_task(task.Wait(task_v2_pb2.WaitRequest(id=container_id), timeout=60))
    await task.Start(task_v2_pb2.StartRequest(id=container_id), timeout=30)
    assert (await waiting).exit_status == 0
    await task.Delete(task_v2_pb2.DeleteRequest(id=container_id), timeout=30)
    await task.Shutdown(task_v2_pb2.ShutdownRequest(id=container_id))
    # What the host sees of it, at once: the root file system was a directory of its own.
    rootfs = raw.directory / "rootfs"
    assert ((rootfs / "a").stat().st_uid, (rootfs / "a").stat().st_nlink) == (12, 2)
    assert (volume / "file").read_text() == "volume\n"


async def test_the_end_of_the_daemon_is_the_end_of_the_sandbox(raw: RawShim) -> None:
    container_id = raw.bundle("sleep", "600")
    task = await raw.task(container_id)
    await task.Create(raw.create_request(container_id), timeout=90)
    await task.Start(task_v2_pb2.StartRequest(id=container_id), timeout=30)
    waiting = asyncio.create_task(task.Wait(task_v2_pb2.WaitRequest(id=container_id), timeout=30))
    os.kill(raw.file_server(container_id), signal.SIGKILL)
    assert (await waiting).exit_status == 137
    await eventually_async(lambda: not raw.vmm(container_id), "the virtual machine's end")
