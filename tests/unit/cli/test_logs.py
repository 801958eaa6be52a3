"""`kata logs parse` and its exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kata.cli.main import invoke
from kata.logs.formats import FORMATS

GOOD = 'time="2026-11-30T10:00:00Z" level=info msg=good name=n pid=1 source=s\n'
INCOMPLETE = 'time="2026-11-30T10:00:01Z" level=info msg=incomplete\n'
GARBLED = GOOD.replace("good", '"reading guest console" vmconsole="{\\"msg\\":"')
BROKEN = "no record \x1b[31m\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "a.log"


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, list[str]]:
    code = invoke(["logs", "parse", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


@pytest.mark.parametrize(
    ("text", "options", "code"),
    [
        (GOOD, [], 0),
        (GOOD + BROKEN, [], 1),
        (GOOD + BROKEN, ["--ignore-missing-fields"], 1),
        (GOOD + INCOMPLETE, [], 1),
        (GOOD + INCOMPLETE, ["--ignore-missing-fields"], 0),
        (GOOD + GARBLED, [], 0),
        (GOOD + GARBLED, ["--strict"], 1),
        (GOOD + GARBLED, ["--no-agent-unpack", "--strict"], 0),
        ("", [], 0),
        ("", ["--error-if-no-records"], 1),
        ("", ["--error-if-file-empty"], 1),
    ],
)
@pytest.mark.parametrize("check_only", [False, True])
def test_exit_codes(
    capsys: pytest.CaptureFixture[str], log: Path, text: str, options: list[str], code: int, check_only: bool
) -> None:
    log.write_text(text)
    found, output, errors = outcome(capsys, *options, *(["--check-only"] if check_only else []), log)
    assert found == code
    assert bool(errors) == (code != 0 or (text.endswith(GARBLED) and not options))
    wanted = "" if check_only or any(option.startswith("--error") for option in options) else text
    assert len(output.splitlines()) == len(wanted.splitlines()), "nothing is lost, whatever is wrong with it"


def test_what_is_wrong_is_listed_with_its_place(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    log.write_text(GOOD + INCOMPLETE + BROKEN)
    assert outcome(capsys, "--check-only", log)[2] == [
        f"kata: {log}, line 2: no pid, source, name: incomplete",
        f"kata: {log}, line 3: neither logfmt nor JSON: no record \\x1b[31m",
        "kata: 2 of 3 lines are broken, or lack a field",
    ]
    log.write_text(BROKEN * 30)
    assert outcome(capsys, "--check-only", log)[2][20:22] == [
        "kata: and 10 more",
        "kata: 30 of 30 lines are broken, or lack a field",
    ]


def test_warnings_can_be_left_out(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    log.write_text(GOOD + GARBLED)
    assert outcome(capsys, log)[2] == ["kata: warning: agents' records that cannot be read: 1"]
    assert outcome(capsys, "--quiet", log)[2] == []


def test_files_and_standard_input_are_merged(
    capsys: pytest.CaptureFixture[str], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write_text(INCOMPLETE + INCOMPLETE.replace("01Z", "03Z"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD.replace("00Z", "02Z").encode())))
    code, output, _ = outcome(capsys, "--ignore-missing-fields", "--output-format", "json", log, "-")
    assert code == 0
    entries = json.loads(output)["Entries"]
    assert [(entry["Filename"], entry["TimeDelta"]) for entry in entries] == [
        (str(log), 0),
        ("-", 10**9),
        (str(log), 10**9),
    ]


def test_a_file_gets_the_output(capsys: pytest.CaptureFixture[str], log: Path, tmp_path: Path) -> None:
    log.write_text(GOOD)
    out = tmp_path / "out"
    assert outcome(capsys, "--debug", "--output-file", out, log) == (0, "", [f"kata: {log}: 1 lines"])
    assert out.stat().st_mode & 0o777 == 0o600
    assert out.read_text().endswith(" good\n")
    assert sorted(os.listdir(tmp_path)) == ["a.log", "out"]


def test_a_device_stays_one(capsys: pytest.CaptureFixture[str], log: Path, tmp_path: Path) -> None:
    log.write_text(GOOD)
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    assert outcome(capsys, "--output-file", link, log) == (0, "", [])
    assert link.is_symlink()
    assert link.is_char_device()


def test_a_full_disk_leaves_the_old_file(capsys: pytest.CaptureFixture[str], log: Path, tmp_path: Path) -> None:
    log.write_text(GOOD)
    code, _, errors = outcome(capsys, "--output-file", "/dev/full", log)
    assert (code, errors) == (1, ["kata: cannot write /dev/full: no space left on device"])


def test_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, "--list-output-formats") == (0, "\n".join(sorted(FORMATS)) + "\n", [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "kata: no log file is named"),
        (["/nonexistent"], "kata: cannot read /nonexistent: no such file or directory"),
        (["/"], "kata: cannot read /: is a directory"),
        (["--debug", "x"], "kata: --debug needs --output-file or --check-only"),
        (["--output-format", "ron", "x"], "kata: unknown output format 'ron' (csv, json, text, toml, xml, yaml)"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, output, errors = outcome(capsys, *arguments)
    assert (code, output, errors[0]) == (1, "", said)


def test_the_script_has_katas_name(log: Path) -> None:
    log.write_text(GOOD)
    script = "import sys; from kata.cli.main import log_parser; sys.argv[0] = 'kata-log-parser'; log_parser()"
    done = subprocess.run([sys.executable, "-c", script, log], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("n[1] s: good\n")
