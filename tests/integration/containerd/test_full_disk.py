"""No room in the state directory: said in one line, and nothing stays.

The shim runs in a mount namespace in which /run/kata is a small file system of its own.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kata.runtime.ledger.journal import STATE_ROOT
from kata.shim.launcher import NAME
from kata.ttrpc import Code, StatusError
from tests.support.mounts import in_mount_namespace
from tests.support.rawshim import RawShim

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

#: $1: mount options of the small file system; $2: bytes to fill it with beforehand.
WRAPPER = f"""
mkdir -p {STATE_ROOT}
mount -t tmpfs -o "$1" full {STATE_ROOT}
head -c "$2" /dev/zero >{STATE_ROOT}/.filler
shift 2
exec "$@"
"""


def start(raw: RawShim, container_id: str, options: str, filler: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *in_mount_namespace("sh", "-c", WRAPPER, "sh", options, str(filler)),
            *(str(raw.directory / "bin" / NAME), "-namespace", "raw", "-address", raw.address, "-id", container_id),
            "start",
        ],
        cwd=raw.path(container_id),
        env=raw.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
    )


@pytest.mark.parametrize(
    ("options", "filler"),
    [("size=4k", 4096), ("size=1m,nr_inodes=2", 0), ("size=1m,nr_inodes=3", 0)],
    ids=["no block", "no inode for the directory", "no inode for the ledger"],
)
async def test_no_room_for_the_ledger(raw: RawShim, options: str, filler: int) -> None:
    container_id = raw.bundle()
    done = start(raw, container_id, options, filler)
    assert (done.returncode, done.stdout) == (1, "")
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


async def test_no_room_for_the_vm(raw: RawShim) -> None:
    container_id = raw.bundle()
    # Room for the root, the filler, the sandbox's directory and its ledger.
    done = start(raw, container_id, "size=1m,nr_inodes=4", 0)
    assert done.returncode == 0, done.stderr
    socket = Path(done.stdout.removeprefix("unix://"))
    task = await raw.connect(str(socket))
    with pytest.raises(StatusError) as caught:
        await task.Create(raw.create_request(container_id), timeout=20)
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    assert "No space left on device" in caught.value.message
    assert not socket.exists(), "all has been given back before the answer"
    assert "\n" not in caught.value.message
