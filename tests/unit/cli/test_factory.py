"""`kata factory` on directories of templates; that one is made is shown in tests/vm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kata.cli.main import invoke
from kata.runtime.hypervisor.template import template
from tests.support.templates import make_template


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "templates"


@pytest.fixture
def config(tmp_path: Path, root: Path) -> str:
    path = tmp_path / "configuration.toml"
    path.write_text(f'[factory]\ntemplate_path = "{root}"\n')
    return str(path)


def make(root: Path, key: str) -> Path:
    return make_template(root, key, {"accelerator": "tcg", "vcpus": 2, "memory_mib": 640})


def test_nothing_is_there(config: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["factory", "status", "--config", config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert invoke(["factory", "destroy", "--config", config]) == 0
    assert capsys.readouterr().out == ""
    assert not root.exists()


def test_status(config: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(root, "good")
    (make(root, "bad") / template.MEMORY).unlink()
    assert invoke(["factory", "status", "--config", config, "--json"]) == 0
    good, bad = sorted(json.loads(capsys.readouterr().out), key=lambda entry: str(entry["key"]), reverse=True)
    assert (good["key"], good["vcpus"], good["memory_mib"], good["problem"]) == ("good", 2, 640, None)
    assert (good["domain"], good["bytes"] >= 4096) == ("", True)
    assert bad["vcpus"] is None
    assert "memory is missing" in bad["problem"]


def test_status_for_people(config: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(root, "good")
    (make(root, "bad") / template.MEMORY).unlink()
    assert invoke(["factory", "status", "--config", config]) == 0
    told = capsys.readouterr()
    assert "640 MiB" in told.out
    assert "template bad is broken" in told.err


def test_destroy(config: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(root, "good")
    assert invoke(["factory", "destroy", "--config", config]) == 0
    assert capsys.readouterr().out == "good\n"
    assert [path.name for path in root.iterdir()] == [".lock"]


def test_init_of_what_is_switched_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "configuration.toml"
    path.write_text("[factory]\nenable_template = false\n")
    assert invoke(["factory", "init", "--config", str(path)]) == 1
    assert "enable_template = true" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["init", "serve"])
def test_huge_pages_have_no_template(command: str, config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Path(config).open("a") as file:
        file.write("[hypervisor.qemu]\nenable_hugepages = true\n")
    assert invoke(["factory", command, "--config", config]) != 0
    said = capsys.readouterr().err
    assert "a VM on huge pages is not restored from a template" in said
    assert "set enable_hugepages to false" in said
