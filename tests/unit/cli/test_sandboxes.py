"""`kata list` and `kata inspect`: of sandboxes that answer, of those that do not, and of none."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kata.cli import sandboxes
from kata.cli.main import invoke
from kata.errors import InvalidArgument, NotFound
from kata.loop.off import off_loop
from kata.management.protocol import SOCKET
from kata.management.server import Request, Response
from kata.runtime.launch.timings import Timings
from kata.runtime.ledger.journal import Ledger
from kata.runtime.sandbox.management import Management

TOLD: dict[str, Any] = {
    "id": "box",
    "state": "running",
    "why_ended": "",
    "pid": 7,
    "vm": {"pid": 8, "accelerator": "kvm", "vcpus": 2, "memory_mib": 512},
    "containers": [{"id": "box", "state": "running"}, {"id": "other", "state": "stopped"}],
}


def dead(root: Path, name: str) -> Path:
    directory = root / name
    Ledger(str(directory)).close()
    (directory / "console.log").write_text("first\n\x1b[31mPanic\n")
    return directory


async def test_one_that_answers(tmp_path: Path) -> None:
    directory = dead(tmp_path, "box@k8s.io")
    timings = Timings(directory, time.monotonic())
    with timings.phase("plan"):
        pass
    timings.write()

    async def tell(request: Request) -> Response:
        return Response.of(TOLD)

    management = Management(str(directory), lambda opened: {"/sandbox": {"GET": tell}})
    management.serve(str(directory))
    try:
        found = await off_loop(sandboxes.inspect, "box", tmp_path)
    finally:
        await management.close()
    assert {key: found[key] for key in TOLD} == TOLD
    assert (found["namespace"], found["engine"], found["engine_by"]) == ("k8s.io", "cri", "namespace k8s.io")
    assert [phase["name"] for phase in found["start_phases"]] == ["plan"]
    assert found["started"] == pytest.approx(time.time(), abs=60)


def test_one_whose_process_is_gone(tmp_path: Path) -> None:
    dead(tmp_path, "box")
    found = sandboxes.inspect("box", tmp_path)
    assert (found["state"], found["engine"]) == ("dead", "kata run")
    assert found["log_tails"] == {"console.log": ["first", "Panic"]}


def test_one_that_starts(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "box"))
    assert sandboxes.inspect("box", tmp_path)["state"] == "starting"
    ledger.close()


@contextmanager
def hanging(path: Path) -> Iterator[None]:
    """Somebody who accepts connections and says nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        taken: list[socket.socket] = []
        thread = threading.Thread(target=lambda: taken.append(listener.accept()[0]))
        thread.start()
        yield
        thread.join(60)
        for connection in taken:
            connection.close()


def test_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxes, "_ANSWER_TIMEOUT_S", 0.1)
    directory = dead(tmp_path, "box")
    with hanging(directory / SOCKET):
        found = sandboxes.inspect("box", tmp_path)
    assert found["state"] == "unknown"
    assert "did not answer within 0.1 s" in found["error"]


def test_all_of_them(tmp_path: Path) -> None:
    assert sandboxes.inspect_all(tmp_path / "none") == []
    for name in ("b", "a@k8s.io", "standby-0123456789ab", "start-slot-0"):
        dead(tmp_path, name) if name != "start-slot-0" else (tmp_path / name).touch()
    assert [one["id"] for one in sandboxes.inspect_all(tmp_path)] == ["a", "b"]


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="sandbox box does not exist"):
        sandboxes.inspect("box", tmp_path)
    with pytest.raises(InvalidArgument):
        sandboxes.inspect("../box", tmp_path)


def test_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"id": "box", "namespace": "", "state": "dead", "started": None, "state_directory": "/run/kata/box@k8s.io"}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sandboxes, "inspect_all", lambda: [found])
    assert invoke(["list", "--quiet"]) == 0
    assert capsys.readouterr().out == "box@k8s.io\n"
    assert invoke(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [found]
    assert invoke(["inspect", "no-such-sandbox"]) == 1
    assert "sandbox no-such-sandbox does not exist" in capsys.readouterr().err
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert invoke(["list"]) == 1
    assert "kata list needs root" in capsys.readouterr().err
