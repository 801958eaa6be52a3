"""`kata-agent-ctl --vm`: a guest of its own, with a container from nothing to removed, and nothing left afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.agent_ctl import examples
from kata.oci.default import default_spec
from kata.runtime.ledger.journal import STATE_ROOT
from tests.support import leaks
from tests.support.images import busybox_rootfs

pytestmark = [pytest.mark.vm, pytest.mark.timeout(240)]

AGENT_CTL = str(Path(sys.executable).with_name("kata-agent-ctl"))
IDS = "agent-ctl-"
TIMEOUT_S = 120.0
SCRIPT = [word for line in examples.CONTAINER for word in ("-c", line)]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    with leaks.nothing_stays(IDS):
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundle")
    (directory / "rootfs").mkdir()
    busybox_rootfs(directory / "rootfs")
    (directory / "data").mkdir()
    (directory / "data/file").write_text("of the host")
    mount = {"destination": "/data", "type": "bind", "source": f"{directory}/data", "options": ["rbind", "ro"]}
    spec = default_spec(
        ("sh", "-c", "echo hello from $(uname -s), with a file $(cat /data/file); exit 7"),
        rootfs="rootfs",
        hostname="",
        mounts=[mount],  # type: ignore[list-item]
    )
    (directory / "config.json").write_text(json.dumps(spec))
    return directory


def connect(
    bundle: Path, *arguments: str, level: str = "info", **options: object
) -> subprocess.CompletedProcess[bytes]:
    settings: dict[str, object] = {"capture_output": True, "timeout": TIMEOUT_S, "check": False, **options}
    if "input" not in settings:
        settings["stdin"] = subprocess.DEVNULL
    command = [AGENT_CTL, "-l", level, "connect", "--vm", "qemu", "--bundle-dir", str(bundle), *arguments]
    return subprocess.run(command, **settings)  # type: ignore[call-overload, no-any-return]


def test_a_container_from_nothing_to_removed(bundle: Path) -> None:
    """The script of `examples`."""
    result = connect(bundle, *SCRIPT)
    said = result.stderr.decode()
    assert result.returncode == 0, said
    assert result.stdout.decode() == "hello from Linux, with a file of the host\nstatus: 7\n"
    done = re.findall(r"^kata-agent-ctl: (\w+)[^:\n]*: ok, \d+ ms$", said, re.MULTILINE)
    assert done == [line.split()[0] for line in examples.CONTAINER if line != "ReadStdout"]


def test_streams_execs_and_errors(bundle: Path) -> None:
    """Input through a pipe, more of it than a pipe holds; an id twice; files of a container are there until it goes."""
    data = os.urandom(300_000)
    result = connect(
        bundle,
        "--ignore-errors",
        "-c", "CreateSandbox",
        "-c", "CreateContainer cid=one OCI.Process.Args=sleep OCI.Process.Args=1000",
        "-c", "CreateContainer cid=one",
        "-c", "StartContainer",
        "-c", "ExecProcess process.Args=cat",
        "-c", "attach",
        "-c", "ExecProcess exec_id=list process.Args=ls process.Args=/data",
        "-c", "ReadStdout exec_id=list",
        "-c", "SignalProcess exec_id= signal=cont",
        "-c", "SignalProcess exec_id=",
        "-c", "WaitProcess exec_id=",
        "-c", "RemoveContainer",
        "-c", "StatsContainer",
        "-c", "DestroySandbox",
        level="warn",
        input=data,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout == data + b"file\nstatus: 137\n"
    assert re.findall(r"^kata-agent-ctl: (\w+: [A-Z_]+: .*)$", result.stderr.decode(), re.MULTILINE) == [
        "CreateContainer: ALREADY_EXISTS: container one already exists",
        "StatsContainer: NOT_FOUND: container one does not exist",
    ]


def test_a_signal_ends_the_guest(bundle: Path) -> None:
    with subprocess.Popen(
        [AGENT_CTL, "connect", "--vm", "-c", "Check", "-c", "GetOOMEvent"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"status: SERVING\n"
        assert list(Path(STATE_ROOT).glob(f"{IDS}*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not list(Path(STATE_ROOT).glob(f"{IDS}*"))
