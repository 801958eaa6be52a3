"""`kata logs SANDBOX`: from a state directory as a sandbox leaves it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from kata.cli import management
from kata.cli.main import invoke
from kata.cli.naming import resolve_sandbox
from kata.loop.off import off_loop
from kata.management.server import Request, Response
from kata.runtime.hypervisor.console import RingFile
from kata.runtime.sandbox.management import Management

AGENT = {"level": "INFO", "ts": "2026-11-30T10:00:02+00:00", "name": "kata-agent", "pid": "1", "source": "agent"}
SHIM = 'time="2026-11-30T10:00:0{}Z" level=info msg="{}" name=containerd-shim-v2 pid=7 sandbox=box source=kata.x\n'


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "box@default"
    directory.mkdir()
    agent = json.dumps({"msg": "hello from the agent", **AGENT})
    (directory / "console.log.1").write_text("[    0.100000] Linux version\n")
    (directory / "console.log").write_text(f"\x1b[31mpanic\x1b[0m\x07\n{agent}\n")
    (directory / "shim.log").write_text(SHIM.format(1, "first") + SHIM.format(3, "third"))
    (directory / "qemu.log").write_text("[2026-11-30T10:00:04Z WARN  virtiofsd] slow\nqemu: warning\n")
    monkeypatch.setattr(management, "resolve_sandbox", partial(resolve_sandbox, state_root=tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return directory


def output(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert invoke(["logs", *words]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("box")
def test_all_of_them_in_the_order_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "box")
    assert [line.split()[-1] for line in lines] == ["version", "panic", "slow", "warning", "first", "agent", "third"]
    assert lines[4] == "2026-11-30T10:00:01.000Z  shim       info     first"


@pytest.mark.usefixtures("box")
@pytest.mark.parametrize(
    ("component", "ends"),
    [
        ("guest", ["Linux version", "panic", '"source": "agent"}']),
        ("agent", ['"source": "agent"}']),
        ("shim", ["source=kata.x", "source=kata.x"]),
        ("qemu", ["qemu: warning"]),
        ("virtiofsd", ["virtiofsd] slow"]),
    ],
)
def test_one_as_it_was_written(capsys: pytest.CaptureFixture[str], component: str, ends: list[str]) -> None:
    lines = output(capsys, "show", "--component", component, "box")
    assert len(lines) == len(ends)
    assert all(line.endswith(end) for line, end in zip(lines, ends, strict=True))
    assert "".join(lines).isprintable()


@pytest.mark.usefixtures("box")
def test_some_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(output(capsys, "-n", "2", "box")) == 2
    assert output(capsys, "-n", "0", "box") == []
    lines = output(capsys, "--since", "2026-11-30T10:00:02Z", "box")
    assert [line.split()[-1] for line in lines] == ["agent", "third"]


def test_a_log_that_is_not_kept(box: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (box / "shim.log").unlink()
    assert invoke(["logs", "-c", "shim", "box"]) == 1
    assert "sandbox box@default keeps no log of its shim" in capsys.readouterr().err
    assert len(output(capsys, "box")) == 5
    assert invoke(["logs", "none"]) == 1
    assert "sandbox none does not exist" in capsys.readouterr().err
    assert invoke(["logs", "-c", "kernel", "box"]) == 2
    assert invoke(["logs", "-n", "-1", "box"]) == 2


def test_following_through_a_rotation_until_the_sandbox_is_gone(box: Path) -> None:
    ring = RingFile(box / "shim.log", 400)
    program = (
        "import sys; from functools import partial; from pathlib import Path;"
        "from kata.cli import management; from kata.cli.main import invoke;"
        "management.resolve_sandbox = partial(management.resolve_sandbox, state_root=Path(sys.argv[1]));"
        "sys.exit(invoke(['logs', '-f', '-c', 'shim', 'box']))"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(box.parent)], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    written = []
    for number in range(6):
        ring.write(SHIM.format(number, f"line-{number}").encode())
        line = child.stdout.readline()
        written.append(line)
        assert f"line-{number}" in line
    for path in box.iterdir():
        path.unlink()
    box.rmdir()
    assert child.stdout.read() == ""
    child.stdout.close()
    assert child.wait(30) == 0
    ring.close()


@pytest.mark.parametrize(("text", "moment"), [("90s", 910.0), ("1h1m", -2660.0), ("1700000000", 1.7e9)])
def test_moments(text: str, moment: float) -> None:
    from kata.cli.moments import parse_since

    assert parse_since(text, 1000.0) == moment


def test_moments_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["logs", "--since", "yesterday", "box"]) == 1
    assert "--since 'yesterday' is no time" in capsys.readouterr().err


def test_lines_of_a_hostile_guest_stay_lines(box: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (box / "console.log").write_bytes(b"\x1b]0;title\x07{" * 1000 + b"\xff\n" + b"x" * 200_000)
    begin = time.monotonic()
    lines = output(capsys, "-c", "guest", "box")
    assert "".join(lines).isprintable()
    assert time.monotonic() - begin < 20


async def test_a_vm_from_standby_has_its_logs_elsewhere(box: Path, capsys: pytest.CaptureFixture[str]) -> None:
    standby = box.parent / "standby-1"
    standby.mkdir()
    for name in ("console.log", "console.log.1", "qemu.log"):
        (box / name).rename(standby / name)

    async def tell(request: Request) -> Response:
        return Response.of({"vm": {"log_directory": str(standby)}})

    management = Management(str(box), lambda opened: {"/sandbox": {"GET": tell}})
    management.serve(str(box))
    try:
        lines = await off_loop(output, capsys, "box")
    finally:
        await management.close()
    assert len(lines) == 7
