from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from kata.cli import timings
from kata.cli.main import invoke
from kata.errors import InvalidArgument, NotFound
from kata.runtime.launch.timings import Phase, Start, Timings

PHASES = [Phase("plan", "", 0.0, 10.0), Phase("qemu", "", 10.0, 80.0), Phase("first output", "box", 100.0, 0.0)]

START = Start(1_000_000_000.5, tuple(PHASES))


def shown(phases: list[Phase]) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(timings.as_table(phases))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_row_for_each_phase_with_its_place() -> None:
    rows = {line.split("  ")[0].strip(): line for line in shown(PHASES).splitlines()}
    assert "80.0" in rows["qemu"]
    assert "box" in rows["first output"]
    assert rows["qemu"].count("━") == 32
    assert rows["first output"].rstrip().endswith("━")
    assert rows["qemu"].index("━") > rows["plan"].index("━")


def test_nothing_yet() -> None:
    assert "PHASE" in shown([])


def test_a_sandbox_by_its_id(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    Timings(tmp_path / "box", time.monotonic()).moment("first output", "box")
    assert [phase.name for phase in timings.load("box", tmp_path).phases] == ["first output"]
    (tmp_path / "box").rename(tmp_path / "box@k8s.io")
    assert timings.load("box", tmp_path) == timings.load("box@k8s.io", tmp_path)
    with pytest.raises(NotFound, match="sandbox other does not exist"):
        timings.load("other", tmp_path)
    with pytest.raises(InvalidArgument):
        timings.load("../box", tmp_path)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(timings, "load", lambda sandbox: START)
    assert invoke(["timings", "box", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1] == {
        "name": "qemu", "subject": "", "begin_ms": 10.0, "length_ms": 80.0
    }  # fmt: skip
    assert invoke(["timings", "box"]) == 0
    assert "first output" in capsys.readouterr().out


def test_no_such_sandbox(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["timings", "no-such-sandbox"]) == 1
    assert "sandbox no-such-sandbox does not exist" in capsys.readouterr().err


def test_spans_of_a_start() -> None:
    request = timings.as_spans("box", START)
    assert request == timings.as_spans("box", START), "sent twice it is the same"
    (resource,) = request["resourceSpans"]
    assert resource["resource"]["attributes"] == [{"key": "service.name", "value": {"stringValue": "kata"}}]
    start, plan, qemu, output = resource["scopeSpans"][0]["spans"]
    assert (start["name"], start["startTimeUnixNano"]) == ("start", "1000000000500000000")
    assert start["endTimeUnixNano"] == "1000000000600000000"
    assert "parentSpanId" not in start
    assert {one["parentSpanId"] for one in (plan, qemu, output)} == {start["spanId"]}
    assert len({one["spanId"] for one in (start, plan, qemu, output)}) == 4
    assert (len(start["traceId"]), len(start["spanId"])) == (32, 16)
    assert (qemu["startTimeUnixNano"], qemu["endTimeUnixNano"]) == ("1000000000510000000", "1000000000590000000")
    assert start["attributes"] == [{"key": "kata.sandbox.id", "value": {"stringValue": "box"}}]
    assert {"key": "container.id", "value": {"stringValue": "box"}} in output["attributes"]


def test_metrics_of_all(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Timings(tmp_path / name, time.monotonic()).moment("first output", "c")
    (tmp_path / "starting").mkdir()
    starts = timings.load_all(tmp_path)
    assert list(starts) == ["one", "two"]
    text = timings.as_metrics({"box": START})
    assert 'kata_sandbox_start_phase_seconds{container_id="",namespace="",phase="qemu",sandbox_id="box"} 0.08' in text
    labels = 'container_id="box",namespace="",phase="first output",sandbox_id="box"'
    assert f"kata_sandbox_start_phase_begin_seconds{{{labels}}} 0.1" in text
    assert timings.load_all(tmp_path / "nothing") == {}


def test_the_commands_of_machines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(timings, "load", lambda sandbox, root=None: START)
    assert invoke(["timings", "box", "--spans"]) == 0
    assert len(json.loads(capsys.readouterr().out)["resourceSpans"]) == 1
    assert invoke(["metrics"]) == 0
    assert "# TYPE kata_sandbox_start_phase_seconds gauge" in capsys.readouterr().out
