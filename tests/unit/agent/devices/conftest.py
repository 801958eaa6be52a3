"""Fixtures for tests of the agent's devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from .sysfs import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)
