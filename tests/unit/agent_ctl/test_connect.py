"""`kata-agent-ctl` as people run it: against the real agent, as a process on a Unix socket."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.agent_ctl import examples
from kata.agent_ctl.main import invoke
from kata.agent_ctl.script import BUILT_IN, Call, read_all
from kata.version import VERSION
from tests.support.terminal import on_a_terminal
from tests.support.waiting import eventually

AGENT_CTL = str(Path(sys.executable).with_name("kata-agent-ctl"))
TIMEOUT_S = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of an agent."""
    if os.geteuid():
        pytest.skip("needs root")
    path = tmp_path / "agent.sock"
    process = subprocess.Popen(
        [sys.executable, "-m", "kata.agent", f"--server-addr=unix://{path}", f"--state-dir={tmp_path}/state"],
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(path.exists, "the agent listens")
        yield f"unix://{path}"
    finally:
        process.kill()
        process.wait(10)


def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, list[str]]:
    result = subprocess.run([AGENT_CTL, *arguments], input=stdin, capture_output=True, timeout=TIMEOUT_S, check=False)
    return result.returncode, result.stdout.decode(), result.stderr.decode().splitlines()


def commands(*lines: str) -> list[str]:
    return [word for line in lines for word in ("-c", line)]


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    code = invoke(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


def test_a_sandbox_is_made_and_unmade(server: str) -> None:
    script = ("Check", "repeat 2", "Version", "CreateSandbox sid=s1 hostname=pod", "CreateSandbox sid=s2")
    code, output, said = run("connect", "--server-address", server, "--ignore-errors", *commands(*script))
    assert (code, output) == (0, "status: SERVING\n" + f"grpc_version: 0.0.1\nagent_version: {VERSION}\n" * 2)
    assert re.fullmatch(r"kata-agent-ctl: CreateSandbox sandbox_id=s1: ok, \d+ ms", said[3])
    assert said[4:] == ["kata-agent-ctl: CreateSandbox: ALREADY_EXISTS: sandbox s1 is already running"]
    code, output, _ = run("-l", "warn", "connect", "--server-address", server, *commands("DestroySandbox"))
    assert (code, output) == (0, "")


def test_the_first_error_is_the_end(server: str) -> None:
    code, output, said = run("connect", "--server-address", server, *commands("StartContainer cid=x", "Check"))
    assert (code, output) == (1, "")
    assert said == ["kata-agent-ctl: StartContainer: NOT_FOUND: container x does not exist"]


def test_answers_as_json(server: str) -> None:
    options = ("--json", "--ignore-errors", "--timeout", "30s")
    code, output, _ = run(
        "connect",
        "--server-address",
        server,
        *options,
        *commands("GetGuestDetails", "MemHotplugByProbe", "StatsContainer cid=x"),
    )
    details, probe, stats = map(json.loads, output.splitlines())
    assert code == 0
    assert details["answer"]["agent_details"]["version"] == VERSION
    assert (probe["rpc"], probe["error"]["code"]) == ("MemHotplugByProbe", "UNIMPLEMENTED")
    assert stats["error"] == {"code": "NOT_FOUND", "message": "container x does not exist"}


def test_a_script_in_a_pipe(server: str) -> None:
    script = b"# what is there\n\nCheck\nrepeat 2\necho x\nquit\nStartContainer\n"
    code, output, _ = run("connect", "--server-address", server, "--interactive", stdin=script)
    assert (code, output) == (0, "status: SERVING\nx\nx\n")
    code, output, said = run("connect", "--server-address", server, "--interactive", stdin=b"Check\nStartContaner\n")
    assert (code, output, said[0]) == (2, "", "kata-agent-ctl: there is no command 'StartContaner'")


def test_a_reader_that_leaves(server: str) -> None:
    with subprocess.Popen(
        [AGENT_CTL, "-l", "error", "connect", "--server-address", server, *commands("repeat -1", "GetMetrics")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"metrics: |\n"
        process.stdout.close()
        assert process.wait(TIMEOUT_S) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal(server: str, number: int) -> None:
    with subprocess.Popen(
        # A shell's job in the background, as these tests may be, ignores SIGINT, and so would this.
        [
            "env",
            "--default-signal",
            AGENT_CTL,
            "connect",
            "--server-address",
            server,
            *commands("Check", "GetOOMEvent"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"status: SERVING\n"
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == 128 + number


def test_a_prompt(server: str, tmp_path: Path) -> None:
    """Completion, a mistake, an error, Ctrl-C that ends a command and not the session, history for the next time."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    argv = [AGENT_CTL, "-l", "warn", "connect", "--server-address", server, "--interactive"]
    code, said = on_a_terminal(
        argv,
        (b"agent>", b"GetGuestD"),
        (b"GuestDetailsRequest", b"\t"),
        (b"etails", b" mem_b"),
        (b"bool", b"\t"),
        (b"lock_size=", b"false\r"),
        (b"mem_block_size_bytes: 0", b"CreateSandbox hostnam=x\r"),
        (b"close: hostname (string)", b"StartContainer cid=x\r"),
        (b"NOT_FOUND", b"repeat -1\r"),
        (b"agent>", b"echo again\r"),
        (b"again\r\nagain\r\n", b"\x03"),
        (b"agent>", b"Version\r"),
        (f"agent_version: {VERSION}\r\n\x1b[?2004h".encode(), b"\x04"),  # the next prompt
        environment=environment,
        timeout=TIMEOUT_S,
    )
    assert code == 0, said
    history = tmp_path / "kata/agent-ctl-history"
    assert "CreateSandbox hostnam=x" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["connect"], "there are no commands"),
        (["connect", "-c", "Check"], "where is the agent?"),
        (["connect", "--interactive"], "where is the agent?"),
        (["connect", "--server-address", "tcp://x", "-c", "Check"], "invalid server address 'tcp://x'"),
        (["connect", "--server-address", "unix:///x", "--vm", "-c", "Check"], "--vm has an agent of its own"),
        (["connect", "--sandbox", "x", "--vm", "-c", "Check"], "--sandbox says which agent it is"),
        (["connect", "--sandbox", "no-such-sandbox", "-c", "Check"], "sandbox no-such-sandbox is not running"),
        (["connect", "--vm", "firecracker", "-c", "Check"], "--vm firecracker: there is qemu only"),
        (["connect", "qemu", "-c", "list"], "unexpected argument 'qemu'"),
        (["connect", "--timeout", "soon", "-c", "list"], "--timeout 'soon' is not a duration"),
        (["connect", "--bundle-dir", "/nowhere", "-c", "list"], "/nowhere/config.json does not exist"),
        (["connect", "--server-address", "unix:///x", "-c", "Chek"], "there is no command 'Chek'"),
        (["connect", "--server-address", "unix:///x", "-c", "Check x=y"], "Check has no field 'x'"),
        (["connect", "--frobnicate"], "no such option: --frobnicate"),
        (["-l", "loud", "generate-cid"], "invalid value for '-l'"),
        (["frobnicate"], "no such command 'frobnicate'"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, output, errors = outcome(capsys, *arguments)
    assert (code, output) == (2, "")
    assert errors[0].lower().startswith(f"kata-agent-ctl: {said}".lower())
    assert errors[1].startswith("hint: ")
    assert len(errors) == 2


def test_nobody_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, errors = outcome(capsys, "connect", "--server-address", "unix:///nowhere", "-c", "Check")
    assert (code, output) == (1, "")
    assert errors[0] == "kata-agent-ctl: cannot connect to unix:///nowhere: no such file or directory"
    code, output, errors = outcome(
        capsys, "-l", "debug", "connect", "--server-address", "unix:///nowhere", "-c", "Check"
    )
    assert code == 1
    assert "Traceback (most recent call last):" in errors


def test_without_an_agent() -> None:
    code, output, said = run("connect", "-c", "list")
    assert (code, said) == (0, [])
    assert "  CreateContainer (AgentService)\n" in output
    for command in ("generate-cid", "generate-sid"):
        code, output, said = run(command)
        assert (code, said) == (0, [])
        assert re.fullmatch(r"[0-9a-f]{64}\n", output)
    assert run("--version") == (0, f"kata-agent-ctl {VERSION}\n", [])


def test_the_examples_can_be_typed(tmp_path: Path) -> None:
    """Each command of each example is one, and its fields exist."""
    code, text, said = run("examples")
    assert (code, said) == (0, [])
    typed = [shlex.split(line[4:]) for line in text.replace("\\\n", "").splitlines() if line.startswith("  $ ")]
    lines = [words[index + 1] for words in typed for index, word in enumerate(words) if word == "-c"]
    assert len(lines) > 20
    assert len(read_all(lines)) == len(lines) - 1, "`repeat` is no step of its own"
    assert {line.split()[0] for line in examples.CONTAINER} < {line.split()[0] for line in lines}
    assert all(isinstance(step.action, Call) for step in read_all(examples.CONTAINER))


def test_the_reference_has_every_option_and_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    reference = (Path(__file__).parents[3] / "docs/reference/agent-ctl.md").read_text()
    _, text, _ = outcome(capsys, "connect", "--help")
    options = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE)) - {"--help"}
    section = reference.partition("## Options of connect\n")[2].partition("\n`-l`")[0]
    assert options == set(re.findall(r"^\|.*?(--[a-z][a-z-]+)", section, re.MULTILINE))
    commands_ = reference.partition("\n## Commands\n")[2].partition("\n### ")[0]
    assert {name for name in BUILT_IN if re.search(rf"^\|.*`{name}[ `]", commands_, re.MULTILINE)} == set(BUILT_IN)
