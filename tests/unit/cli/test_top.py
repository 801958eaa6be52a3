"""`kata top` and `kata stats` with sandboxes that answer, hang and are dead; and what is left of the terminal."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kata.cli import observe, sandboxes
from kata.cli.observe import Observer
from kata.management.protocol import SOCKET
from kata.management.server import Request, Response
from kata.runtime.ledger.journal import Ledger
from kata.runtime.sandbox.management import Management
from tests.support.terminal import TERM, on_a_terminal

PROGRAM = """
import os, sys
from pathlib import Path
from kata.cli import sandboxes
from kata.cli.main import invoke
os.geteuid = lambda: 0
there = sandboxes.directories
sandboxes.directories = lambda: there(Path(sys.argv[1]))
sys.exit(invoke(sys.argv[2:]))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(40):
        Ledger(str(tmp_path / f"box-{number:02}")).close()
    return tmp_path


def command(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(root), *words]


def test_the_terminal_is_as_it_was(root: Path) -> None:
    shell = 'stty -g; "$@"; echo status=$?; stty -g'
    argv = ["sh", "-c", shell, "sh", *command(root, "top", "--interval", "0.2")]
    status, said = on_a_terminal(argv, (b"box-00", b"mrt\x1b[B"), (b"box-01", b"\x1a"), (b"box-01", b"q"))
    lines = said.decode().split("\r\n")
    assert status == 0
    assert lines[0] == lines[-2]
    assert "status=0" in lines[-3]
    screen = said.partition(b"\x1b[?1049h")[2]
    assert screen.index(b"\x1b[?1049l") > screen.index(b"box-00")
    assert screen.rindex(b"\x1b[?25h") > screen.rindex(b"\x1b[?25l"), "the cursor is back"


@pytest.mark.parametrize(("how", "expected"), [(b"\x03", "status=0"), (signal.SIGTERM, "status=143")])
def test_however_it_ends(root: Path, how: bytes | signal.Signals, expected: str) -> None:
    shell = 'trap : TERM; stty -g; "$@"; echo status=$?; stty -g'
    status, said = on_a_terminal(
        ["sh", "-c", shell, "sh", *command(root, "top", "--interval", "0.2")], (b"box-00", how)
    )
    lines = said.decode().split("\r\n")
    assert (status, lines[0]) == (0, lines[-2])
    assert expected in lines[-3]
    assert said.rindex(b"\x1b[?1049l") > said.rindex(b"box-00")


def test_a_narrow_terminal(root: Path) -> None:
    status, said = on_a_terminal(command(root, "top", "--interval", "0.1"), (b"SAND", b"q"), size=(8, 30))
    assert status == 0
    assert b"Traceback" not in said


def test_another_size(root: Path) -> None:
    """The picture is drawn anew at once, for the new size: no look at the sandboxes comes in between."""
    main, terminal = os.openpty()
    fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    argv = ["setsid", "--ctty", "--wait", *command(root, "top", "--interval", "600")]
    environment = {**os.environ, "TERM": TERM}
    process = subprocess.Popen(argv, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)

    def read_until(text: bytes) -> bytes:
        said = b""
        while text not in said:
            assert select.select([main], [], [], 60)[0], said[-300:]
            said += os.read(main, 65536)
        return said

    try:
        for _ in range(2):  # there is a second look after a second
            assert b"AGE" in read_until(b"scroll")
        fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("4H", 10, 40, 0, 0))
        smaller = read_until(b"q quit")
        assert b"AGE" not in smaller
        assert b"box-03" in smaller
        assert b"box-04" not in smaller
        os.write(main, b"q")
        while select.select([main], [], [], 60)[0]:
            try:
                os.read(main, 65536)
            except OSError:
                break
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main)


def test_without_a_terminal_it_prints_once(root: Path) -> None:
    done = subprocess.run(command(root, "top", "--interval", "0.1"), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "40 sandboxes, 0 running" in lines[0]
    assert len(lines) == 42
    assert "\x1b" not in done.stdout


# ------------------------------------------------------------------------------------------------------------- observer


def answer(begin: float) -> dict[str, Any]:
    now = time.time()
    cpu_ns = round((now - begin) * 1e9)
    figures = {"cpu_ns": cpu_ns, "memory_bytes": 1, "memory_limit_bytes": None, "pids": 1}
    return {"time": now, "containers": {"c": figures}, "network": {}, "vm": {"cpu_ns": cpu_ns}}


@pytest.fixture
async def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """A sandbox whose container uses one CPU, beside one that hangs and one that is dead."""
    directory = tmp_path / "busy@default"
    ledger = Ledger(str(directory))
    begin = time.time()

    async def stats(request: Request) -> Response:
        return Response.of(answer(begin))

    async def tell(request: Request) -> Response:
        return Response.of({"id": "busy", "state": "running", "containers": [{"id": "c", "name": "web"}]})

    management = Management(str(directory), lambda opened: {"/stats": {"GET": stats}, "/sandbox": {"GET": tell}})
    management.serve(str(directory))
    hanging = Ledger(str(tmp_path / "hanging"))
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_unix_server(lambda reader, writer: held.append(writer), tmp_path / "hanging" / SOCKET)
    Ledger(str(tmp_path / "dead")).close()
    monkeypatch.setattr(observe, "_TIMEOUT_S", 1.0)
    there = sandboxes.directories
    monkeypatch.setattr(sandboxes, "directories", lambda: there(tmp_path))
    yield tmp_path
    await management.close()
    server.close()
    for writer in held:
        writer.close()
    ledger.close()
    hanging.close()


@pytest.mark.usefixtures("busy")
async def test_one_that_hangs_holds_up_no_other() -> None:
    observer = Observer()
    await observer.look()
    await asyncio.sleep(0.3)
    views = {view.told["id"]: view for view in await observer.look()}
    assert {name: view.told["state"] for name, view in views.items()} == {
        "busy": "running",
        "hanging": "unknown",
        "dead": "dead",
    }
    ((told, _, rate),) = views["busy"].containers()
    assert told["name"] == "web"
    assert rate.cpu == pytest.approx(1.0, abs=0.001)
    assert views["hanging"].vm is None


@pytest.mark.usefixtures("busy")
async def test_stats_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    from kata.cli.stats import _show

    await _show(Observer(), None, interval=0.2, once=True, in_json=True)
    found = {one["sandbox"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["busy"]["containers"]["c"]["cpu_percent"] == pytest.approx(100, abs=0.1)
    assert found["dead"]["containers"] == found["hanging"]["containers"] == {}


def test_a_signal_number_is_told(root: Path) -> None:
    process = subprocess.Popen(command(root, "stats", "--interval", "0.1"), stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert "SANDBOX" in process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    process.stdout.close()
    assert process.wait(30) in (130, 141)
