"""The command line, and that one part's failure is not the others'."""

from __future__ import annotations

import io
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from benchmarks.__main__ import main, parser, run_parts
from benchmarks.contenders import CONTENDERS
from benchmarks.parts import PARTS, Part
from benchmarks.processes import belonging, kind_of
from benchmarks.report import Report, to_json
from benchmarks.stage import Stage
from kata.errors import Internal
from tests.support.containerd import PrivateContainerd


def stage(directory: Path) -> Stage:
    """A stage on which nothing can be run."""
    return Stage(cast(PrivateContainerd, None), CONTENDERS, 1, 1, directory)


def test_the_other_parts_go_on(tmp_path: Path) -> None:
    def refused(stage: Stage) -> None:
        stage.record("before", "s", {"kata": (1.0,)})
        raise Internal("no [bold]room")

    def broken(_: Stage) -> None:
        raise ZeroDivisionError

    def good(stage: Stage) -> None:
        stage.record("after", "s", {"kata": (2.0,)}, 3)

    parts = {"a": Part(refused, ""), "b": Part(broken, ""), "c": Part(good, "")}
    used, said = stage(tmp_path), io.StringIO()
    failures = run_parts(used, list(parts), parts, Console(file=said))
    assert failures == {"a": "no [bold]room", "b": "ZeroDivisionError()"}
    assert [(one.part, one.name, one.count) for one in used.figures] == [("a", "before", 0), ("c", "after", 3)]
    assert "a failed: no [bold]room" in said.getvalue()


def test_options() -> None:
    options = parser().parse_args(["--only", "stop", "--only", "start", "--sandboxes", "7"])
    assert (options.only, options.sandboxes, options.runs) == (["stop", "start"], 7, 5)
    for wrong in (["--only", "nothing"], ["--runs", "0"], ["--sandboxes", "-1"], ["--runs", "many"]):
        with pytest.raises(SystemExit):
            parser().parse_args(wrong)


def test_help_names_every_part() -> None:
    text = parser().format_help()
    for name in PARTS:
        assert name in text


def test_every_part_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs/performance.md").read_text(encoding="utf-8")
    for name in PARTS:
        assert f"| `{name}` |" in text


def test_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    path.write_text(to_json(Report("2026-11-26", {}, {}, (), {})), encoding="utf-8")
    assert main(["--markdown", str(path)]) == 0
    assert "Measured 2026-11-26" in capsys.readouterr().out
    for wrong in (tmp_path / "none.json", tmp_path):
        assert main(["--markdown", str(wrong)]) == 1
    path.write_text("{}", encoding="utf-8")
    assert main(["--markdown", str(path)]) == 1
    assert "not a report" in capsys.readouterr().out


def test_a_machine_that_cannot_be_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KATA_CONF_FILE", str(tmp_path / "none.toml"))
    assert main(["--json", str(tmp_path / "x.json"), "--html", str(tmp_path / "x.html")]) == 1
    assert "nothing can be measured: cannot read configuration" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("/usr/bin/qemu-system-x86_64 -nodefaults", "qemu"),
        ("/usr/lib/qemu/virtfs-proxy-helper -n", "file server"),
        ("/images/1/host/ld-linux-x86-64.so.2 --inhibit-cache --library-path /images/1/host", "file server"),
        ("/usr/bin/python3 -IS /opt/kata/bin/containerd-shim-kata-v2 -namespace default", "shim"),
        ("/usr/bin/containerd-shim-runc-v2 -namespace default", "shim"),
        ("sleep 86400", "container"),
    ],
)
def test_kind_of_process(command: str, kind: str) -> None:
    assert kind_of(command.split()) == kind


def test_processes_of_a_sandbox() -> None:
    """Descendants at any depth, and strangers that carry the mark; each once, and none of unknown sandboxes."""
    parents = {10: 1, 11: 10, 12: 11, 20: 1, 30: 1, 31: 30, 40: 1}
    assert belonging({10: "a", 20: "b"}, parents, {12: "a", 30: "b", 40: "gone"}) == {"a": [10, 11, 12], "b": [20, 30]}
