"""What tests of several packages need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.linux.namespaces import CLONE_NEWNET, pin, setns, unpin, unshare


@pytest.fixture
def network_namespace(tmp_path: Path) -> Iterator[str]:
    """The path of a network namespace with nothing in it."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    path = str(tmp_path / "net")
    unshare(CLONE_NEWNET)
    try:
        pin("/proc/thread-self/ns/net", path)
    finally:
        setns(home, CLONE_NEWNET)
        os.close(home)
    yield path
    unpin(path)
