"""`kata-runtime`: Kata's global options before our commands."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import pytest

from kata.cli import execute
from kata.cli.kata_runtime import PROGRAM, kata_runtime
from kata.cli.main import invoke
from kata.runtime.config.loader import SYSTEM_PATHS
from kata.version import VERSION


@pytest.fixture(autouse=True)
def configuration_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set, so that what the command sets is undone.
    monkeypatch.setenv("KATA_CONF_FILE", "")


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    code = invoke(list(arguments), kata_runtime, PROGRAM)
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


def test_it_has_the_commands_of_kata_and_katas(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = outcome(capsys, "--help")
    listed = set(re.findall(r"^  ([a-z-]+) ", out.partition("Commands:")[2], re.MULTILINE))
    assert {"check", "env", "factory", "metrics", "iptables", "direct-volume", "policy", "version", "list"} <= listed


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, "--version") == outcome(capsys, "-v") == (0, f"kata-runtime {VERSION}\n", [])
    assert outcome(capsys, "version")[1].startswith(f"kata-runtime  : {VERSION}\n   OCI specs: 1.")


def test_default_paths(capsys: pytest.CaptureFixture[str]) -> None:
    expected = "".join(f"{path}\n" for path in SYSTEM_PATHS)
    assert outcome(capsys, "--show-default-config-paths") == (0, expected, [])


@pytest.mark.parametrize("option", ["--config", "--kata-config"])
@pytest.mark.parametrize("command", ["env", "kata-env"])
def test_the_configuration_holds_for_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, command: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[hypervisor.qemu]\nmemory_slots = 3\n")
    code, out, _ = outcome(capsys, option, str(file), command, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["Runtime"]["Config"]["Path"], found["Hypervisor"]["MemorySlots"]) == (str(file), 3)


def test_what_has_no_effect_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--root", "/run/x", "--rootless", "true", "--systemd-cgroup", "version")
    code, out, errors = outcome(capsys, *words)
    assert code == 0
    assert out
    assert [line.partition(" has no effect: ")[0] for line in errors] == [
        "kata: warning: --root",
        "kata: warning: --rootless",
        "kata: warning: --systemd-cgroup",
    ]
    assert outcome(capsys, "--rootless", "auto", "version")[2] == []
    assert outcome(capsys, "--rootless", "maybe", "version")[0] == 2


def test_exec_is_the_debug_console_unless_a_container_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Kata's, which has no other."""
    wanted: list[execute.ExecRequest] = []

    def take(request: execute.ExecRequest) -> int:
        wanted.append(request)
        return 7

    monkeypatch.setattr(execute, "execute", take)
    for words in (("box", "--", "ls"), ("shop/web",), ("shop/web/c1", "ls"), ("-c", "c1", "box", "ls")):
        assert outcome(capsys, "exec", "--kata-debug-port", "1026", *words) == (7, "", [])
    assert [(one.guest, one.command) for one in wanted] == [
        (True, ("ls",)), (True, ()), (False, ("ls",)), (False, ("ls",)),
    ]  # fmt: skip
    assert invoke(["exec", "box", "ls"]) == 7
    assert not wanted[-1].guest


def test_a_policy_in_katas_language_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "policy.rego").write_text("package agent_policy\ndefault CreateContainerRequest := true\n")
    code, _, errors = outcome(capsys, "policy", "set", "--sandbox-id", "x", str(tmp_path / "policy.rego"))
    assert code == 1
    assert errors[0].startswith("kata: the policy is not TOML: ")


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_has_the_command_and_its_error(capsys: pytest.CaptureFixture[str], tmp_path: Path, form: str) -> None:
    log = tmp_path / "log"
    words = ("--log", str(log), "--log-format", form, "config", "check", "/nonexistent\n.toml")
    try:
        assert outcome(capsys, *words)[0] == 1
    finally:
        close_logs()
    lines = log.read_text().splitlines()
    assert len(lines) == 2
    assert "cannot read configuration /nonexistent" in lines[1]
    assert invoke(["logs", "parse", "--output-format", "json", str(log)]) == 0
    entries = json.loads(capsys.readouterr().out)["Entries"]
    assert [entry["Level"] for entry in entries] == ["info", "error"]
    assert {entry["Name"] for entry in entries} == {"kata-runtime"}


def close_logs() -> None:
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in list(root.handlers):
        if type(handler) is logging.FileHandler:
            root.removeHandler(handler)
            handler.close()


@pytest.mark.parametrize("log", ["/nonexistent/log", "/"])
def test_a_log_that_cannot_be_written(capsys: pytest.CaptureFixture[str], log: str) -> None:
    code, _, errors = outcome(capsys, "--log", log, "version")
    assert code == 1
    assert errors[0].startswith(f"kata: cannot write {log}: ")
    assert os.environ["KATA_CONF_FILE"] == ""
