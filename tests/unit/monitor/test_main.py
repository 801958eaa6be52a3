"""Mistakes on kata-monitor's command line: a line that says what, and the exit code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kata.monitor.main import invoke
from kata.version import VERSION

PROGRAM = str(Path(sys.executable).with_name("kata-monitor"))


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--listen-address", "nowhere"], 1, "kata-monitor: invalid address 'nowhere'\nhint: HOST:PORT"),
        (["--listen-address", "192.0.2.1:80"], 1, "kata-monitor: listen on 192.0.2.1:80: "),
        (["--listen-address"], 2, "kata-monitor: "),
        (["--log-level", "loud"], 2, "kata-monitor: invalid value for '-l' / '--log-level'"),
        (["--scrape-timeout", "0"], 2, "kata-monitor: invalid value for '--scrape-timeout'"),
        (["extra"], 2, "kata-monitor: got unexpected extra argument"),
        (["--nothing"], 2, "kata-monitor: no such option: --nothing"),
    ],
)
def test_mistakes(arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    if status == 1 and os.geteuid() != 0:
        pytest.skip("needs root")
    assert invoke(arguments) == status
    captured = capsys.readouterr()
    assert captured.err.startswith(said)
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_not_root(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert invoke([]) == 1
    assert capsys.readouterr().err == "kata-monitor: kata-monitor needs root\nhint: run it with sudo\n"


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["--version"]) == 0
    assert capsys.readouterr().out == f"kata-monitor {VERSION}\n"
    assert invoke(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--listen-address", "--runtime-endpoint", "--log-level", "--host"))


@pytest.mark.root
def test_it_serves_until_it_is_ended() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with subprocess.Popen([PROGRAM, "--listen-address", address], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert f'level=info msg="listening on http://{address}" name=kata-monitor pid={process.pid}' in line
        second = subprocess.run([PROGRAM, "--listen-address", address], capture_output=True, text=True, timeout=60)
        assert (second.returncode, second.stdout) == (1, "")
        assert second.stderr.startswith(f"kata-monitor: listen on {address}: Address already in use\nhint: ")
        process.terminate()
        assert process.wait(60) == -15
        assert "Traceback" not in process.stderr.read()
