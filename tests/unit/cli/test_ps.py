"""`kata list`: what is told of sandboxes to rows of text."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest

from kata.cli import ps, sandboxes
from kata.cli.main import invoke

POD = "0123456789abcdef" * 4
RUNNING: dict[str, Any] = {
    "id": POD,
    "namespace": "k8s.io",
    "engine": "cri",
    "pod": {"namespace": "shop", "name": "web", "uid": "u"},
    "state": "running",
    "pid": 7,
    "vm": {"pid": 8, "accelerator": "kvm", "vcpus": 2, "memory_mib": 512},
    "containers": [
        {"id": POD, "name": "", "state": "running", "exit_status": None, "execs": []},
        {"id": "c2", "name": "nginx", "state": "stopped", "exit_status": 3, "execs": [{"state": "stopped"}]},
    ],
    "started": 1000.0,
    "state_directory": f"/run/kata/{POD}@k8s.io",
}
DEAD: dict[str, Any] = {
    "id": "box",
    "namespace": "",
    "engine": "kata run",
    "pod": None,
    "state": "dead",
    "started": None,
    "state_directory": "/run/kata/box",
}


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sandboxes, "inspect_all", lambda: [RUNNING, DEAD])
    monkeypatch.setattr(ps, "time", SimpleNamespace(time=lambda: 1180.0))


def output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert invoke(list(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", ["list", "ps"])
def test_the_table(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert output(capsys, verb).splitlines() == [
        "SANDBOX       ENGINE    NAMESPACE  POD       STATE    CONTAINERS  AGE  VCPUS  MEMORY  ACCEL",
        "0123456789ab  cri       k8s.io     shop/web  running  1/2         3m   2      512M    kvm",
        "box           kata run  -          -         dead     -           -    -      -       -",
    ]


def test_containers(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "ps", "--containers").splitlines() == [
        "CONTAINER     NAME   TYPE       STATE    EXIT  PROCESSES  SANDBOX       POD       ENGINE",
        "0123456789ab  -      sandbox    running  -     1          0123456789ab  shop/web  cri",
        "c2            nginx  container  stopped  3     0          0123456789ab  shop/web  cri",
    ]


def test_names_and_templates(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "ps", "-q").split() == [f"{POD}@k8s.io", "box"]
    assert output(capsys, "ps", "-q", "--containers").split() == [POD, "c2"]
    assert output(capsys, "ps", "--format", "{{.ID}} {{.Pod}}").splitlines() == ["0123456789ab shop/web", "box -"]
    assert output(capsys, "ps", "--no-trunc", "--format", "{{.ID}}").split() == [POD, "box"]
    assert json.loads(output(capsys, "ps", "--json")) == [RUNNING, DEAD]
    assert [one["id"] for one in json.loads(output(capsys, "ps", "--json", "--containers"))] == [POD, "c2"]


def test_what_another_version_tells_is_enough() -> None:
    little = {"id": "x", "state": "running", "state_directory": "/run/kata/x", "containers": [{"id": "x"}], "vm": {}}
    (row,) = ps.sandbox_rows([little], now=0.0)
    assert (row["Memory"], row["Pod"], row["Containers"]) == (None, "", "0/1")
    (row,) = ps.container_rows([little], now=0.0)
    assert (row["ID"], row["Type"], row["Execs"]) == ("x", "container", 0)


@pytest.mark.parametrize(
    ("seconds", "said"), [(-3, "0s"), (59.9, "59s"), (121, "2m"), (7199, "119m"), (7200, "2h"), (2e5, "2d")]
)
def test_ages(seconds: float, said: str) -> None:
    assert ps.ago(seconds) == said
