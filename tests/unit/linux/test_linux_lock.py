"""Locks between processes, with real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kata.linux import lock

_HOLDER = "import sys, time; from kata.linux import lock; print(lock.acquire(sys.argv[1]), flush=True); time.sleep(60)"


def test_one_holds_it_and_the_others_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = lock.acquire(path)
    assert held is not None
    assert not os.get_inheritable(held)
    assert path.stat().st_mode & 0o777 == 0o600
    assert lock.acquire(path) is None
    os.close(held)
    again = lock.acquire(path)
    assert again is not None
    os.close(again)


def test_the_kernel_takes_it_from_who_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", _HOLDER, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() != "None\n"
        assert lock.acquire(path, timeout=0.05) is None
        holder.kill()
    held = lock.acquire(path, timeout=5)
    assert held is not None
    os.close(held)


def test_waits_as_long_as_it_may(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = lock.acquire(path)
    assert held is not None
    begin = time.monotonic()
    assert lock.acquire(path, timeout=0.2) is None
    assert time.monotonic() - begin >= 0.2
    threading.Timer(0.1, os.close, [held]).start()
    waited = lock.acquire(path, timeout=10)
    assert waited is not None
    os.close(waited)


def test_a_file_that_was_removed_meanwhile_is_not_the_lock(tmp_path: Path) -> None:
    """Whoever gives up the lock may remove the file: who waited for it must not hold what nobody else will find."""
    path = tmp_path / "lock"
    held = lock.acquire(path)
    assert held is not None

    def remove_and_release() -> None:
        path.unlink()
        os.close(held)

    threading.Timer(0.1, remove_and_release).start()
    waited = lock.acquire(path, timeout=10)
    assert waited is not None
    assert os.path.samestat(os.fstat(waited), path.stat())
    assert lock.acquire(path) is None
    os.close(waited)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lock.acquire(tmp_path / "lock", flags=0)
    with pytest.raises(FileNotFoundError):
        lock.acquire(tmp_path / "none/lock")


def test_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        lock.acquire(tmp_path / "lock")
    assert not (tmp_path / "target").exists()


def test_who_waits_can_say_for_whom(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    assert lock.holder(path) == "another process", "nobody"
    with subprocess.Popen([sys.executable, "-c", _HOLDER, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() != "None\n"
        told = lock.holder(path)
        holder.kill()
    assert told.startswith(f"process {holder.pid} (-c import sys, time;")
    assert told.endswith(")")
    assert len(told) < 250
    assert lock.holder(tmp_path / "nowhere") == "another process"
