"""Every command with what is wrong: one line that says so and one that says what to do, the documented exit code.

The commands are those of the parsers, so that a new one is among them at once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from kata.cli.kata_runtime import PROGRAM, kata_runtime
from kata.cli.main import invoke
from tests.support.terminal import on_a_terminal
from tools import manual

KATA = manual.programs()["kata"]
LEAVES = {leaf.name: leaf for leaf in KATA.leaves()}
_TIMEOUT_S = 120.0
#: What an argument or option of that name may be, so that nothing but the sandbox is wrong.
_VALUES = {
    "FILE": "/dev/null",
    "POLICY": "/dev/null",
    "JSON": "{}",
    "BYTES": "1",
    "PATH": "/nonexistent",
    "SRC": "{sandbox}:/x",
    "DST": "/nonexistent",
    "SIGNAL": "TERM",
}
#: Commands that ask nobody who is root, and change nothing.
_HARMLESS = (
    ["--version"],
    ["version"],
    ["check", "list"],
    ["env"],
    ["config", "show"],
    ["config", "paths"],
    ["config", "check"],
    ["logs", "parse", "--list-output-formats"],
    ["run", "--help"],
)

#: Runs each command of a JSON list in a child of its own, with a standard output as told; prints status and errors.
IN_CHILDREN = """
import json, os, sys, tempfile
import kata.cli.main as main
import kata.cli.check, kata.cli.env, kata.cli.observe, kata.cli.sandboxes, kata.cli.events_follow, kata.cli.top_live
import kata.cli.copying, kata.cli.execute, kata.cli.timings, kata.cli.logs_show, h11
found = []
for arguments in json.loads(sys.argv[2]):
    with tempfile.TemporaryFile() as errors:
        pid = os.fork()
        if pid == 0:
            if sys.argv[1] == "full":
                os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
            elif sys.argv[1] == "pipe":
                reader, writer = os.pipe()
                os.close(reader)
                os.dup2(writer, 1)
            elif sys.argv[1] == "with-errors":
                os.dup2(errors.fileno(), 1)
            else:
                os.close(1)
            os.dup2(errors.fileno(), 2)
            sys.argv = ["kata", *arguments]
            main.main()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        errors.seek(0)
        found.append((status, errors.read().decode()))
print(json.dumps(found))
"""


def in_children(output: str, commands: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    argv = [sys.executable, "-c", IN_CHILDREN, output, json.dumps(commands)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    return [(status, errors) for status, errors in json.loads(done.stdout)]


def assert_a_line_and_a_hint(errors: str, said: str = "") -> None:
    lines = errors.splitlines()
    assert len(lines) == 2, errors
    assert lines[0].startswith("kata: ")
    assert said in lines[0]
    assert lines[1].startswith("hint: ")
    assert errors.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", LEAVES)
def test_a_wrong_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = name.split()[1:]
    assert invoke([*words, "--frobnicate"]) == (125 if words[0] in ("run", "exec") else 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_a_line_and_a_hint(captured.err, "--frobnicate")


@pytest.mark.parametrize("name", [one.name for one in KATA.commands if one.commands])
def test_a_wrong_command_of_a_group(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = name.split()[1:]
    if words == ["logs"]:
        return  # it is a sandbox's name
    assert invoke([*words, "frobnicate"]) == 2
    assert_a_line_and_a_hint(capsys.readouterr().err, "frobnicate")


def test_a_wrong_option_under_katas_name(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--frobnicate"], ["kata-check", "--frobnicate"], ["frobnicate"], ["--log-format", "x", "version"]):
        assert invoke(words, kata_runtime, PROGRAM) == 2
        assert_a_line_and_a_hint(capsys.readouterr().err)


def words_for(leaf: manual.Command, sandbox: str) -> list[str] | None:
    """A command line that is right but for the sandbox; None if the command takes none."""
    found = leaf.name.split()[1:]
    takes = False
    for one in leaf.parameters:
        value = one.value if one.is_option else one.names[0]
        is_sandbox = "SANDBOX" in value or "--sandbox-id" in one.names
        takes |= is_sandbox
        if one.is_required or is_sandbox:
            text = sandbox if is_sandbox else _VALUES.get(value, "x").replace("{sandbox}", sandbox)
            if value in ("SRC", "DST"):
                takes = True
            found += [one.names[-1], text] if one.is_option else [text]
    return found if takes else None


def with_sandbox(sandbox: str) -> dict[str, list[str]]:
    found = {name: words_for(leaf, sandbox) for name, leaf in LEAVES.items()}
    return {name: words for name, words in found.items() if words is not None}


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_there_are_commands_that_take_a_sandbox() -> None:
    assert {"kata inspect", "kata logs show", "kata stats", "kata metrics", "kata iptables get"} <= set(
        with_sandbox("x")
    )


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("name", with_sandbox("x"))
@pytest.mark.parametrize("sandbox", ["no-such-sandbox", "../etc", "a b", "x" * 200, "\x1b[2J"])
def test_a_sandbox_that_is_none(name: str, sandbox: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(with_sandbox(sandbox)[name]) in (1, 125)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert 1 <= len(lines) <= 2
    assert lines[0].startswith("kata: ")
    assert captured.err.replace("\n", "").isprintable()
    if sandbox == "no-such-sandbox":
        assert_a_line_and_a_hint(captured.err, sandbox)


@pytest.mark.parametrize("name", with_sandbox("x"))
def test_without_root(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert invoke(with_sandbox("x")[name]) in (1, 125)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_a_line_and_a_hint(captured.err, "root")


def test_a_full_disk() -> None:
    for words, (status, errors) in zip(_HARMLESS, in_children("full", _HARMLESS), strict=True):
        assert status == (125 if words[0] == "run" else 1), words
        assert_a_line_and_a_hint(errors, "cannot write standard output: no space left on device")


def test_a_pipe_that_nobody_reads() -> None:
    for words, (status, errors) in zip(_HARMLESS, in_children("pipe", _HARMLESS), strict=True):
        assert (status, errors) == (141, ""), words


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_pipe_that_nobody_reads_of_what_goes_on() -> None:
    commands = [["list"], ["stats", "--interval", "0.1"], ["top", "--interval", "0.1"], ["metrics"]]
    for words, (status, errors) in zip(commands, in_children("pipe", commands), strict=True):
        assert (status, errors) == (141, ""), words


def test_no_standard_output() -> None:
    for words, (status, errors) in zip(_HARMLESS, in_children("none", _HARMLESS), strict=True):
        assert (status, errors) == (0, ""), words


def test_a_file_that_cannot_be_written() -> None:
    for words in (["env", "--file", "/dev/full"], ["env", "--file", "/nonexistent/x"]):
        ((status, errors),) = in_children("none", [words])
        assert status == 1
        assert errors.startswith(f"kata: cannot write {words[-1]}: ")
        assert len(errors.splitlines()) == 1


# ---------------------------------------------------------------------------------------- state directories of others


OTHERS = {
    "empty": {},
    "garbage": {
        "ledger": "\x00\xff",
        "timings.json": "[",
        "resources.json": "[]",
        "events.log": "{",
        "shim.log": "\x1b",
    },
    "future": {
        "ledger": "+\tportal\t/x\n",
        "timings.json": json.dumps({"began": "x", "phases": [{"name": 1}]}),
        "resources.json": json.dumps({"vcpus": "many"}),
        "events.log": json.dumps({"type": 1, "time": "x"}),
        "console.log": "hello",
    },
    "past": {"ledger": "", "timings.json": json.dumps({"began": 1.0, "phases": []}), "manage.sock": ""},
}
#: Runs each command of a JSON list; prints status and errors.
_IN_ONE_PROCESS = """
import contextlib, json, sys, tempfile
from kata.cli.main import invoke
found = []
with open("/dev/null", "w") as nowhere, contextlib.redirect_stdout(nowhere):
    for arguments in json.loads(sys.argv[1]):
        with tempfile.TemporaryFile("w+") as errors:
            with contextlib.redirect_stderr(errors):
                status = invoke(arguments)
            errors.seek(0)
            found.append((status, errors.read()))
print(json.dumps(found))
"""
_IN_A_RUN_OF_ITS_OWN = 'mount -t tmpfs none /run && cp -r "$1" /run/kata && shift && exec "$@"'


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root")
def test_state_directories_of_other_versions() -> None:
    commands = [
        *(words for name in OTHERS for words in with_sandbox(name).values() if words[0] not in ("exec", "cp")),
        ["list"],
        ["ps", "--containers"],
        ["stats", "--no-stream", "--interval", "0.1"],
        ["top", "--interval", "0.1"],
        ["events"],
        ["metrics"],
        ["env"],
    ]
    commands = [
        [*words, "--no-stream"] if words[0] == "stats" and "--no-stream" not in words else words for words in commands
    ]
    with tempfile.TemporaryDirectory() as root:
        for name, files in OTHERS.items():
            directory = Path(root, name)
            directory.mkdir()
            for file, content in files.items():
                (directory / file).write_bytes(content.encode("latin-1"))
        argv = [sys.executable, "-c", _IN_ONE_PROCESS, json.dumps(commands)]
        whole = ["unshare", "--mount", "sh", "-ec", _IN_A_RUN_OF_ITS_OWN, "sh", root, *argv]
        done = subprocess.run(whole, capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    for words, (status, errors) in zip(commands, json.loads(done.stdout), strict=True):
        lines = errors.splitlines()
        assert status in (0, 1), (words, errors)
        assert "Traceback" not in errors
        assert "unexpected error" not in errors, (words, errors)
        assert len(lines) <= 2, (words, errors)
        assert all(line.startswith(("kata: ", "hint: ")) for line in lines)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_many_at_once() -> None:
    argv = [sys.executable, "-c", "from kata.cli.main import main; main()", "list"]
    running = [
        subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(4)
    ]
    for process in running:
        _, errors = process.communicate(timeout=_TIMEOUT_S)
        assert (process.returncode, errors) == (0, "")


def test_no_terminal_and_a_stupid_one() -> None:
    program = "import os; os.geteuid = lambda: 0; from kata.cli.main import main; main()"
    argv = [sys.executable, "-c", program, "top", "--interval", "0.1"]
    status, said = on_a_terminal(argv, environment={**os.environ, "TERM": "dumb"})
    assert status == 0
    assert b"\x1b" not in said
