from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kata.osbuilder import store

from .trees import tree


@pytest.fixture
def make_image() -> Callable[[Path, str, int], Path]:
    """Makes an image of a few bytes: (root, version, age in seconds) -> its directory."""

    def make(root: Path, version: str, age: int) -> Path:
        directory = root / version
        directory.mkdir(parents=True)
        files = {}
        for name in (*store.FILES, "root.erofs"):
            content = f"{version} {name}".encode()
            (directory / name).write_bytes(content)
            files[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = {
            "format": store.FORMAT,
            "version": version,
            "recipe": "default",
            "root": {"format": "erofs", "verity": False},
            "date": "2026-11-16T01:02:03Z",
            "kernel_release": "6.12.118+deb13-amd64",
            "files": files,
        }
        (directory / store.MANIFEST).write_text(json.dumps(manifest))
        os.utime(directory, (1_000_000 - age, 1_000_000 - age))
        return directory

    return make


@pytest.fixture
def twins(tmp_path: Path) -> list[Path]:
    """The same content, made in another order at another time."""
    names = [f"{directory}/{i}" for directory in "abc" for i in range(30)]
    return [tree(tmp_path / "x/root", sorted(names), 1), tree(tmp_path / "y/root", sorted(names, reverse=True), 99999)]
