"""Every command with a sandbox that ends while it answers, and with one that answers what nobody should say.

The commands are those of the parsers. They look in /run/kata, so a process of its own has that for itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.test_bad_input import IN_CHILDREN, with_sandbox

_TIMEOUT_S = 150.0
_SERVER = Path(__file__).with_name("dying_sandbox.py")
_WITH_A_SERVER = """
mount -t tmpfs none /run
"$1" "$2" "$3" "$4" &
server=$!
until [ -e /run/kata/box/ready ]; do kill -0 $server; sleep 0.02; done
"$1" -c "$5" "$6" "$7"
kill $server
"""
#: How it ends: where in an answer, and what is left of it then.
ENDS = ("refuses", "half")
HOSTILE = "\x1b[2J\x1b]0;mine\x07<script>[red]\u202e\n| \r"
COMMANDS = [
    *(words for words in with_sandbox("box").values()),
    ["exec", "default/web", "true"],
    ["list"],
    ["ps", "--containers"],
    ["list", "--json"],
    ["stats", "--no-stream", "--interval", "0.1"],
    ["top", "--interval", "0.1"],
    ["events"],
]


def run(how: str, output: str = "none") -> list[tuple[list[str], int, str]]:
    commands = [
        [*words, "--no-stream"] if words[0] == "stats" and "--no-stream" not in words else words for words in COMMANDS
    ]
    argv = [sys.executable, str(_SERVER), how, HOSTILE, IN_CHILDREN, output, json.dumps(commands)]
    whole = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-ec",
        _WITH_A_SERVER,
        "sh",
        *argv,
    ]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return [(words, *found) for words, found in zip(commands, json.loads(done.stdout), strict=True)]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root")
@pytest.mark.parametrize("how", ENDS)
def test_one_line_and_no_trace(how: str) -> None:
    for words, status, errors in run(how):
        lines = errors.splitlines()
        assert status in (0, 1, 125), (words, errors)
        assert len(lines) <= 2, (words, errors)
        assert all(line.startswith(("kata: ", "hint: ")) for line in lines), (words, errors)
        assert "unexpected error" not in errors, (words, errors)
        assert (status == 0) == (not lines), (words, errors)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root")
def test_what_one_says_reaches_no_terminal_but_as_text() -> None:
    shown = {"inspect", "list", "ps", "stats", "top", "logs"}
    for words, status, said in run("hostile", "with-errors"):
        assert status in (0, 1, 125), (words, said)
        assert "Traceback" not in said, (words, said)
        assert "unexpected error" not in said, (words, said)
        assert "script" in said or words[0] not in shown, (words, said)
        # What the shim has written anew, and what is for another program.
        assert said.replace("\n", "").isprintable() or words[0] in ("metrics", "iptables"), (words, said)
