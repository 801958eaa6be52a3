"""The layer cache: what is in it is whole, whoever is killed while building, and what is in use stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kata.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from kata.runtime.images.layer_cache import TREE, LayerCache
from tests.support.repeats import repeated
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs mkfs.erofs")

SIZE = 1 << 30


def content(text: bytes = b"hello") -> Callable[[Path], Path]:
    def fill(directory: Path) -> Path:
        (directory / TREE).mkdir()
        (directory / TREE / "file").write_bytes(text)
        (directory / "beside").write_bytes(text)
        return directory / TREE

    return fill


def unexpected(_: Path) -> Path:
    raise AssertionError("built again")


@pytest.fixture
def cache(tmp_path: Path) -> LayerCache:
    return LayerCache(tmp_path / "layers", SIZE)


def names(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path / "layers"))


def test_an_entry_is_built_once(tmp_path: Path, cache: LayerCache) -> None:
    assert cache.find("a") is None
    first = cache.obtain("a", content())
    again = cache.obtain("a", unexpected)
    assert first.disk == again.disk
    assert first.disk.read_bytes()[1024:1028] == bytes.fromhex("e2e1f5e0")
    assert (first.directory / "beside").read_bytes() == b"hello"
    assert sorted(os.listdir(first.directory)) == ["beside", "disk.erofs", "record.json"]
    assert names(tmp_path) == ["a"]


def test_the_same_directory_gives_the_same_disk(cache: LayerCache) -> None:
    def fill(directory: Path) -> Path:
        tree = content()(directory)
        for path in (tree / "file", tree):
            os.utime(path, ns=(1, 1))
        return tree

    first, second = (cache.obtain(key, fill).disk.read_bytes() for key in ("a", "b"))
    assert first == second


@pytest.mark.parametrize("key", ["", "A", "a/b", "..", ".a", "a" * 201])
def test_a_key_is_a_name(cache: LayerCache, key: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid key"):
        cache.obtain(key, content())


def test_a_failed_build_leaves_nothing(tmp_path: Path, cache: LayerCache) -> None:
    def fails(directory: Path) -> Path:
        content()(directory)
        raise InvalidArgument("damaged")

    with pytest.raises(InvalidArgument, match="damaged"):
        cache.obtain("a", fails)
    assert names(tmp_path) == []


def truncate(disk: Path) -> None:
    os.truncate(disk, 100)


def flip(disk: Path) -> None:
    """One bit, with the length and the time of the last write as before."""
    info = disk.stat()
    with disk.open("r+b") as file:
        file.seek(2000)
        byte = file.read(1)[0]
        file.seek(2000)
        file.write(bytes([byte ^ 1]))
    os.utime(disk, ns=(info.st_atime_ns, info.st_mtime_ns))


def forget(disk: Path) -> None:
    (disk.parent / "record.json").unlink()


@pytest.mark.parametrize("damage", [truncate, flip, forget, os.unlink])
def test_a_damaged_entry_is_built_again(tmp_path: Path, cache: LayerCache, damage: Callable[[Path], None]) -> None:
    old = cache.obtain("a", content())
    damage(old.disk)
    assert cache.find("a") is None
    # It is in use, and whoever uses it keeps it.
    new = cache.obtain("a", content(b"new"))
    assert (new.directory / "beside").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_the_least_recently_used_goes_first(cache: LayerCache) -> None:
    for number, key in enumerate("abcd"):
        entry = cache.obtain(key, content(os.urandom(100_000)))
        entry.close()
        os.utime(entry.directory, (number, number))
    held = cache.find("a")
    assert held
    os.utime(held.directory, (0, 0))
    sizes = {entry.key: entry.size for entry in cache.entries()}
    assert [entry.key for entry in cache.entries()] == ["d", "c", "b", "a"]
    assert {entry.key for entry in cache.entries() if entry.in_use} == {"a"}
    # "a" is the oldest, but in use.
    assert cache.prune(sizes["d"] + sizes["a"]) == ["b", "c"]
    assert [entry.key for entry in cache.entries()] == ["d", "a"]
    held.close()
    assert cache.prune(sizes["d"]) == ["a"]
    assert cache.prune(0) == ["d"]


def test_a_new_entry_makes_room_for_itself(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path / "layers", 0)
    cache.obtain("a", content()).close()
    cache.obtain("b", content()).close()
    # The one that was just added was in use.
    assert names(tmp_path) == ["b"]


def test_damaged_entries_are_pruned(cache: LayerCache) -> None:
    entry = cache.obtain("a", content())
    entry.close()
    truncate(entry.disk)
    assert cache.prune() == ["a"]


def test_two_builders_build_once(tmp_path: Path, cache: LayerCache) -> None:
    built = []
    begun = threading.Event()

    def slow(directory: Path) -> Path:
        begun.set()
        time.sleep(0.5)
        built.append(1)
        return content()(directory)

    with_lock = threading.Thread(target=lambda: cache.obtain("a", slow))
    with_lock.start()
    assert begun.wait(10)
    LayerCache(tmp_path / "layers", SIZE).obtain("a", slow)
    with_lock.join(20)
    assert built == [1]
    assert names(tmp_path) == ["a"]


def test_many_build_and_remove_at_once(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        cache = LayerCache(tmp_path / "layers", 0)
        try:
            for turn in range(15):
                text = str((number + turn) % 3)
                entry = cache.obtain(f"k{text}", content(text.encode()))
                assert (entry.directory / "beside").read_text() == text
                entry.close()
                cache.sweep()
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert failures == []
    LayerCache(tmp_path / "layers", 0).sweep()
    assert all(name.startswith("k") for name in names(tmp_path))


def test_an_entry_is_found_while_others_list(cache: LayerCache) -> None:
    cache.obtain("a", content()).close()
    done = threading.Event()

    def keep_listing() -> None:
        while not done.is_set():
            cache.entries()
            cache.prune()

    listing = threading.Thread(target=keep_listing)
    listing.start()
    try:
        for _ in range(300):
            found = cache.find("a")
            assert found
            found.close()
    finally:
        done.set()
        listing.join(10)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match=r"cannot keep layers in .*: not a directory"):
        LayerCache(tmp_path / "file/layers", SIZE).obtain("a", content())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a file system")
def test_a_full_disk(tmp_path: Path) -> None:
    root = tmp_path / "layers"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(root)], check=True, timeout=20)
    try:
        cache = LayerCache(root, SIZE)
        # The directory fits; the disk beside it does not.
        with pytest.raises(ResourceExhausted, match="no space left") as caught:
            cache.obtain("a", content(os.urandom(300_000)))
        assert "kata layers prune" in str(caught.value.hint)
        assert names(tmp_path) == []
        cache.obtain("a", content()).close()
    finally:
        subprocess.run(["umount", str(root)], check=True, timeout=20)


_BUILDER = """
import sys
from pathlib import Path
from kata.runtime.images.layer_cache import TREE, LayerCache

def fill(directory):
    (directory / TREE).mkdir()
    for number in range(60):
        (directory / TREE / str(number)).write_bytes(bytes([number]) * 50_000)
        print(number, flush=True)
    (directory / "beside").write_bytes(b"b" * 50_000)
    return directory / TREE

print("begin", flush=True)
LayerCache(Path(sys.argv[1]), 1 << 30).obtain("a", fill)
"""


def swept(cache: LayerCache, root: Path) -> list[str]:
    cache.sweep()
    return os.listdir(root)


@repeated(5, round_s=10)
def test_killed_builders(tmp_path: Path, rounds: int) -> None:
    root = tmp_path / "layers"
    cache = LayerCache(root, SIZE)

    def build(lines: int = 61) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", _BUILDER, str(root)], stdout=subprocess.PIPE)
        assert process.stdout
        for _ in range(lines):
            process.stdout.readline()
        return process

    with build() as process:
        begun = time.monotonic()
        assert process.wait(60) == 0
        length = time.monotonic() - begun
    whole = cache.obtain("a", unexpected)
    size = whole.disk.stat().st_size
    whole.close()
    half = 0
    for number in range(rounds):
        cache.prune(0)
        # The first half of them while the directory is filled, the others while the disk is made of it.
        moment = 2 * number / rounds
        with build(1 + min(60, int(60 * moment))) as process:
            time.sleep(length * max(0.0, moment - 1))
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        half += any(name.endswith(".building") for name in os.listdir(root))
        # mkfs.erofs is killed with its parent: the temporary directory is nobody's then.
        eventually(partial(swept, cache, root), "nothing is left", lambda names: not set(names) - {"a"})
        found = cache.find("a")
        assert sorted(os.listdir(root)) == (["a"] if found else [])
        if found:
            assert found.disk.stat().st_size == size
            assert (found.directory / "beside").stat().st_size == 50_000
            found.close()
    assert half, "no build was killed in the middle"
