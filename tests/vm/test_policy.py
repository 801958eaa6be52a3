"""A policy in a real guest: what it does not allow is refused by the agent, whoever asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.cli.policy_generate import NEEDED
from tests.support import leaks
from tests.support.images import busybox_rootfs

pytestmark = [pytest.mark.vm, pytest.mark.timeout(180)]

KATA = str(Path(sys.executable).with_name("kata"))
NAME = f"{leaks.TEST_PREFIX}pol{os.getpid()}"
TIMEOUT_S = 120.0
POLICY = f"""
[endpoints]
allowed = {[*NEEDED, "CloseStdinRequest", "ExecProcessRequest", "ReadStreamRequest"]}

[[rules]]
name = "echo"
endpoint = "ExecProcessRequest"
[rules.fields]
"process.Args" = ["echo", "allowed"]

[[rules]]
name = "the container"
endpoint = "CreateContainerRequest"
[rules.fields]
"OCI.Process.Args" = ["sh", "-c", "echo ready; exec cat"]
"""


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    with leaks.nothing_stays(NAME):
        yield


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """`kata run` of a sandbox with the policy, up to the command."""
    (tmp_path / "rootfs").mkdir(mode=0o755)
    busybox_rootfs(tmp_path / "rootfs")
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "configuration.toml").write_text(f'[agent.kata]\npolicy = """{POLICY}"""\n')
    where = ("--config", str(tmp_path / "configuration.toml"), "--rootfs", str(tmp_path / "rootfs"))
    return [KATA, "run", "-i", *where, "--name", NAME, "--"]


def kata(*words: str) -> tuple[int, str, str]:
    done = subprocess.run([KATA, *words], capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


def test_what_it_does_not_allow_is_refused(command: list[str], tmp_path: Path) -> None:
    with subprocess.Popen(
        [*command, "sh", "-c", "echo ready; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        try:
            assert run.stdout
            assert run.stdout.readline() == "ready\n"
            assert kata("exec", NAME, "--", "echo", "allowed") == (0, "allowed\n", "")
            code, out, errors = kata("exec", NAME, "--", "sh")
            assert (code, out) == (125, "")
            assert "ExecProcessRequest is blocked by policy: rule 'echo': process.Args is ['sh'], not" in errors
            code, _, errors = kata("pause", NAME)
            assert code == 1
            assert "PauseContainerRequest is blocked by policy: it is not among the allowed endpoints" in errors
            code, _, errors = kata("policy", "set", str(tmp_path / "policy.toml"), "--sandbox-id", NAME)
            assert code == 1
            assert "the policy is set already, and stays" in errors
            run.communicate(timeout=TIMEOUT_S)
            assert run.returncode == 0, "writing, its end, and the exit were allowed"
        finally:
            run.kill()


def test_another_container_is_refused(command: list[str]) -> None:
    done = subprocess.run([*command, "sh"], capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    assert done.returncode == 125
    told = "CreateContainerRequest is blocked by policy: rule 'the container': OCI.Process.Args is ['sh'], not"
    assert told in done.stderr
