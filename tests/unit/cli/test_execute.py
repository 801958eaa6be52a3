"""`kata exec`: which container, and which process."""

from __future__ import annotations

import os
from typing import Any

import pytest

from kata.cli.execute import ExecRequest, look_up_user, plan_process
from kata.cli.main import invoke
from kata.cli.naming import choose_container
from kata.errors import InvalidArgument, NotFound
from kata.oci.spec import Process
from kata.runtime.images.user import User

BASE: Process = {
    "args": ["nginx"],
    "cwd": "/srv",
    "env": ["PATH=/bin", "A=1=2", "TERM=dumb"],
    "user": {"uid": 33, "gid": 33},
    "terminal": True,
    "consoleSize": {"height": 1, "width": 1},
    "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_KILL"], "ambient": ["CAP_KILL"]},
    "noNewPrivileges": True,
}


def sandbox(**states: str) -> dict[str, Any]:
    return {"id": "pod", "containers": [{"id": name, "state": state} for name, state in states.items()]}


@pytest.mark.parametrize(
    ("states", "wanted", "found"),
    [
        ({"pod": "running"}, None, "pod"),
        ({"pod": "running", "app": "running"}, None, "app"),
        ({"pod": "running", "app": "paused"}, None, "app"),
        ({"pod": "running", "app": "running", "init": "stopped"}, None, "app"),
        ({"pod": "running", "app": "stopped"}, None, "pod"),
        ({"pod": "running", "app1": "running", "app2": "running"}, "app2", "app2"),
        ({"pod": "running", "4f2a": "running", "77aa": "stopped"}, "7", "77aa"),
        ({"a": "running", "ab": "running"}, "a", "a"),
        ({"pod": "running"}, "pod", "pod"),
    ],
)
def test_the_container_that_is_meant(states: dict[str, str], wanted: str | None, found: str) -> None:
    assert choose_container(sandbox(**states), wanted) == found


@pytest.mark.parametrize(
    ("states", "wanted", "kind", "hint"),
    [
        ({}, None, NotFound, "kata inspect"),
        ({"pod": "stopped"}, None, NotFound, "kata inspect"),
        ({"pod": "running", "a": "running", "b": "running"}, None, InvalidArgument, "a, b"),
        ({"aa": "running", "ab": "running"}, "a", InvalidArgument, "aa, ab"),
        ({"pod": "running"}, "x", NotFound, "pod"),
        ({"pod": "running"}, "", NotFound, "pod"),
    ],
)
def test_no_container_or_several(states: dict[str, str], wanted: str | None, kind: Any, hint: str) -> None:
    with pytest.raises(kind) as caught:
        choose_container(sandbox(**states), wanted)
    assert hint in caught.value.hint


def test_the_container_s_own_process_is_the_base() -> None:
    planned = plan_process(BASE, ExecRequest("pod", command=("ls", "-l"), env=(("A", "x"), ("B", "y"))), None)
    assert planned["args"] == ["ls", "-l"]
    assert planned["env"] == ["PATH=/bin", "A=x", "TERM=dumb", "B=y"]
    assert (planned["cwd"], planned["user"], planned["noNewPrivileges"]) == ("/srv", {"uid": 33, "gid": 33}, True)
    assert planned["capabilities"] == BASE["capabilities"]
    assert planned["terminal"] is False
    assert "consoleSize" not in planned
    assert BASE["args"] == ["nginx"]


def test_a_shell_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-kitty")
    planned = plan_process({"env": ["PATH=/bin"]}, ExecRequest("pod", tty=True, workdir="/tmp"), None)
    assert (planned["args"], planned["terminal"], planned["cwd"]) == (["/bin/sh"], True, "/tmp")
    assert planned["env"] == ["PATH=/bin", "TERM=xterm-kitty"]


@pytest.mark.parametrize(
    ("user", "effective", "ambient"),
    [
        (User(33, 33, (33,)), ["CAP_KILL"], True),
        (User(0, 0, (0,)), ["CAP_CHOWN", "CAP_KILL"], False),
        (User(7, 7, (7,)), [], False),
    ],
)
def test_capabilities_of_another_user(user: User, effective: list[str], ambient: bool) -> None:
    planned = plan_process(BASE, ExecRequest("pod"), user)
    assert planned["user"] == {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)}
    assert planned["capabilities"].get("effective") == effective
    assert ("ambient" in planned["capabilities"]) is ambient


def test_users_of_the_container() -> None:
    files = {"passwd": b"root:x:0:0::/:\nweb:x:33:34::/:\n", "group": b"extra:x:50:web\nweb:x:34:\n"}
    assert look_up_user("web", files) == User(33, 34, (34, 50))
    assert look_up_user("web:extra", files) == User(33, 50, (50,))
    assert look_up_user("1000", {}) == User(1000, 0, (0,))
    with pytest.raises(InvalidArgument, match="neither in the image's /etc/passwd"):
        look_up_user("nobody", {})


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["exec"], 125, "missing argument"),
        (["exec", "--nonsense", "x"], 125, "no such option"),
        (["exec", "no-such-sandbox", "true"], 125, "sandbox no-such-sandbox is not running"),
        (["exec", "../x", "true"], 125, "is not the name of a pod"),
        (["exec", "@x", "true"], 125, "sandbox id"),
        (["exec", "-it", "x", "true"], 125, "standard input is not a terminal"),
        (["exec", "--guest", "-u", "web", "x"], 125, "--guest contradicts"),
        (["exec", "-w", "tmp", "x", "true"], 125, "not an absolute path"),
        (["exec", "--guest", "shop/web/c1", "true"], 125, "--guest contradicts a container and --user"),
        (["stop", "no-such-sandbox"], 1, "is not running"),
        (["stop", "no-such-sandbox", "neither"], 1, "sandbox neither is not running"),
        (["stop"], 2, "missing argument"),
        (["kill", "-s", "NONE", "x"], 1, "there is no signal 'NONE'"),
        (["kill", "-s", "65", "x"], 1, "there is no signal '65'"),
        (["kill", "no-such-sandbox"], 1, "is not running"),
        (["pause", "no-such-sandbox", "c"], 1, "is not running"),
        (["resume", "no-such-sandbox"], 1, "is not running"),
        (["cp", "a"], 2, "missing argument"),
        (["cp", "./a", "./b"], 1, "between two paths of this host"),
        (["cp", "a:/x", "b:/x"], 1, "between two sandboxes"),
        (["cp", "no-such-sandbox:/x", "."], 1, "is not running"),
        (["cp", "a:", "."], 1, "has no path"),
    ],
)
def test_mistakes(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert invoke(arguments) == code
    told = capsys.readouterr().err
    assert said in told.lower() or said in told
    assert "Traceback" not in told


@pytest.mark.parametrize("command", ["exec x true", "cp x:/a .", "stop x", "kill x", "pause x", "resume x"])
def test_only_for_root(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert invoke(command.split()) != 0
    assert f"kata {command.split()[0]} needs root" in capsys.readouterr().err
