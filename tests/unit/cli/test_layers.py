"""`kata layers` and what `kata gc` does with the layer cache."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from kata.cli import layers
from kata.cli.main import invoke
from kata.runtime.images.layer_cache import TREE, LayerCache

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the layer cache is root's"),
    pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs mkfs.erofs"),
]


def fill(directory: Path) -> Path:
    (directory / TREE).mkdir()
    return directory / TREE


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    configuration = tmp_path / "configuration.toml"
    configuration.write_text(f'[runtime]\nlayer_cache_path = "{tmp_path}/layers"\n')
    return ["--config", str(configuration)]


def test_list_and_prune(tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cache = LayerCache(tmp_path / "layers", 1 << 30)
    old = f"base-sha256-{'0' * 64}"  # as wide as a terminal: nothing is cut
    cache.obtain(old, fill).close()
    held = cache.obtain("new", fill)
    (tmp_path / "layers/.half.building/tree").mkdir(parents=True)
    assert invoke(["layers", "list", "--json", *options]) == 0
    listed = {entry["key"]: entry["in_use"] for entry in json.loads(capsys.readouterr().out)}
    assert listed == {old: False, "new": True}
    assert invoke(["layers", "list", *options]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["LAYER", "new", old]
    assert invoke(["layers", "prune", "--keep", "1", *options]) == 0
    assert capsys.readouterr().out == ".half.building\n"
    assert invoke(["layers", "prune", *options]) == 0
    assert capsys.readouterr().out == f"{old}\n"
    held.close()
    assert os.listdir(tmp_path / "layers") == ["new"]


def test_gc_removes_what_is_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "layers/.half.building").mkdir(parents=True)
    cache = LayerCache(tmp_path / "layers", 0)
    monkeypatch.setattr(layers, "cache_of", lambda _: cache)
    monkeypatch.setattr("kata.cli.gc.run", lambda: ())
    assert invoke(["gc"]) == 0
    assert capsys.readouterr().out == "layer cache: .half.building\n"
    assert os.listdir(tmp_path / "layers") == []
