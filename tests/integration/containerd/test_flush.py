"""What a container has written, and never flushed, is on the host when its end is told, and while it is paused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.containerd import unique_id
from tests.support.fileways import RUNC, Files, bind
from tests.support.leaks import TEST_PREFIX
from tests.support.waiting import eventually

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this"), pytest.mark.timeout(240)]

#: In each directory a file that is appended to and stays open, one that is closed, a mapping that outlives its file,
#: and one with a hole.
PROGRAM = """
import mmap, os, sys, time
held = []
for directory in sys.argv[2:]:
    os.makedirs(directory)
    os.chdir(directory)
    log = os.open("appended", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    for number in range(2000):
        os.write(log, b"record %d\\n" % number)
    with open("closed", "wb") as file:
        file.write(b"closed" * 300000)
    with open("mapped", "w+b") as file:
        file.truncate(1 << 20)
        mapping = mmap.mmap(file.fileno(), 0)
    held.append(mapping)
    mapping[5000:5006] = mapping[-6:] = b"mapped"
    sparse = os.open("sparse", os.O_CREAT | os.O_RDWR, 0o644)
    os.pwrite(sparse, b"far", 10 << 20)
    os.ftruncate(sparse, 11 << 20)
print("written", flush=True)
if sys.argv[1] == "ends":
    os._exit(3)
time.sleep(1000)
"""
WAYS = ("virtio-9p", "virtio-fs", "layers, host")
ROOT, VOLUME = "/srv/files", "/a/files"
CONTENT = {
    "appended": b"".join(b"record %d\n" % number for number in range(2000)),
    "closed": b"closed" * 300000,
    "mapped": bytes(5000) + b"mapped" + bytes((1 << 20) - 5012) + b"mapped",
    "sparse": bytes(10 << 20) + b"far" + bytes((1 << 20) - 3),
}


def on_host(files: Files, container_id: str) -> dict[str, dict[str, bytes]]:
    """What is in the container's root and in its volume, read on the host."""
    places = {ROOT: files.containerd.upper(container_id) / "srv/files", VOLUME: files.volume / "files"}
    return {place: {name: _read(path / name) for name in CONTENT} for place, path in places.items()}


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b"is not there"


def differences(found: dict[str, dict[str, bytes]]) -> dict[str, str]:
    """Files that are not as they were written, each with how much of it is right."""
    return {
        f"{place}/{name}": f"{len(content)} of {len(CONTENT[name])} bytes, {content.count(b'mapped')} mapped"
        for place, contents in found.items()
        for name, content in contents.items()
        if content != CONTENT[name]
    }


@pytest.mark.parametrize(
    ("way", "end"),
    [
        ("virtio-9p", "ends"),
        ("virtio-9p", "is paused"),
        *(pytest.param(way, "is killed", marks=pytest.mark.long) for way in (RUNC, *WAYS)),
        *(pytest.param(way, end, marks=pytest.mark.long) for way in (RUNC, *WAYS[1:]) for end in ("ends", "is paused")),
    ],
)
def test_what_was_written_is_on_the_host(files: Files, way: str, end: str, tmp_path: Path) -> None:
    ctr, name, log = files.containerd.ctr, unique_id(TEST_PREFIX), tmp_path / "log"
    mount = bind(files.volume, "/a")
    program = ("/usr/bin/python3", "-c", PROGRAM, "ends" if end == "ends" else "waits", ROOT, VOLUME)
    ctr("run", "-d", "--log-uri", f"file://{log}", *files.options(), *mount, files.image, name, *program, timeout=100)
    try:
        eventually(lambda: log.exists() and log.read_text(), "all is written", lambda said: said == "written\n")
        if end == "is killed":
            ctr("task", "kill", "--signal", "KILL", name)
        if end == "is paused":
            ctr("task", "pause", name, timeout=60)
        else:
            # Nothing of the task is deleted yet, and its VM runs.
            eventually(lambda: ctr("task", "ls").stdout, "the end is told", lambda said: "STOPPED" in said)
        assert differences(on_host(files, name)) == {}
    finally:
        ctr("task", "delete", "--force", name, timeout=60)
        ctr("container", "delete", name, timeout=60)
