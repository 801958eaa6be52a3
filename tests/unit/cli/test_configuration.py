"""`kata config`."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from kata.cli.main import invoke

TEXT = '[hypervisor.qemu]\ndefault_vcpus = 3\nenable_annotations = ["default_vcpus"]\n'
ANNOTATION = "io.katacontainers.config.hypervisor.default_vcpus"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "configuration.toml"
    path.write_text(TEXT)
    return path


def test_show_is_a_configuration_that_says_where_it_is_from(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["config", "show", "--config", str(file)]) == 0
    out = capsys.readouterr().out
    assert tomllib.loads(out)["hypervisor"]["qemu"]["default_vcpus"] == 3
    assert f"  # {file}:2" in out
    assert len([line for line in out.splitlines() if line.endswith("# default")]) > 50
    assert invoke(["config", "show", "--changed", "--config", str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    copy = file.with_name("copy.toml")
    copy.write_text(out)
    assert invoke(["config", "check", "--strict", str(copy)]) == 0


def test_show_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["config", "show", "--changed", "--json", "--config", str(file)]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert first == {
        "section": "hypervisor.qemu",
        "key": "default_vcpus",
        "value": 3,
        "origin": "file",
        "where": f"{file}:2",
    }


@pytest.mark.parametrize(
    "document",
    [
        {"metadata": {"annotations": {ANNOTATION: "4"}}, "spec": {"containers": []}},
        {"spec": {"template": {"metadata": {"annotations": {ANNOTATION: "4"}}}}},
        {"ociVersion": "1.1.0", "annotations": {ANNOTATION: "4"}},
    ],
)
def test_what_a_pod_gets(file: Path, capsys: pytest.CaptureFixture[str], document: object) -> None:
    manifest = file.with_name("pod.yaml")
    manifest.write_text(f"---\n{json.dumps(document)}\n")
    assert invoke(["config", "show", "--changed", "-a", str(manifest), "--config", str(file)]) == 0
    assert any(
        line.startswith("default_vcpus = 4 ") and ANNOTATION in line for line in capsys.readouterr().out.split("\n")
    )


@pytest.mark.parametrize("name", [ANNOTATION, "hypervisor.default_vcpus"])
def test_what_one_annotation_does(file: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert invoke(["config", "show", "-a", f"{name}=5", "--config", str(file)]) == 0
    assert "default_vcpus = 5 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("kind: Pod\n", "no annotations in it"),
        ("{", "not YAML or JSON"),
        (f"annotations: {{{ANNOTATION}: 4}}", "not all values are strings"),
        ("", "no annotations in it"),
        ("- 1", "no annotations in it"),
    ],
)
def test_wrong_files_of_annotations(file: Path, capsys: pytest.CaptureFixture[str], content: str, said: str) -> None:
    manifest = file.with_name("pod.yaml")
    manifest.write_text(content)
    assert invoke(["config", "show", "-a", str(manifest), "--config", str(file)]) == 1
    assert said in capsys.readouterr().err


def test_a_typo_has_a_suggestion(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("[hypervisor.qemu]\ndefault_vcpu = 3\n")
    assert invoke(["config", "check", str(file)]) == 0
    assert invoke(["config", "check", "--strict", str(file)]) == 1
    assert "default_vcpu: unknown key, did you mean default_vcpus?" in capsys.readouterr().err
    file.write_text("[hypervisor.qemu]\ndefault_vcpus = true\n")
    assert invoke(["config", "check", str(file)]) == 1
    assert "default_vcpus = true: expected" in capsys.readouterr().err


def test_paths(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    drop_in = file.parent / "config.d/a.toml"
    drop_in.parent.mkdir()
    drop_in.write_text("")
    monkeypatch.setenv("KATA_CONF_FILE", str(file))
    assert invoke(["config", "paths"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"used      {file}  (KATA_CONF_FILE)", f"used      {drop_in}  (drop-in)"]
    assert len(lines) == 4


def test_a_link_is_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = file.with_name("link.toml")
    link.symlink_to(file)
    assert invoke(["config", "paths", "--config", str(link), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert first == {"path": str(link), "state": "used", "named_by": f"--config, to {file}"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("default_vcpus", "write hypervisor.default_vcpus"),
        ("io.katacontainers.config.enable_tracing", "write agent.enable_tracing"),
        ("example.com/team", "those that do begin with io.katacontainers.config."),
    ],
)
def test_an_annotation_that_changes_nothing(
    file: Path, capsys: pytest.CaptureFixture[str], name: str, hint: str
) -> None:
    assert invoke(["config", "show", "--config", str(file), "-a", f"{name}=4"]) == 1
    assert f"changes no setting\nhint: {hint}\n" in capsys.readouterr().err
