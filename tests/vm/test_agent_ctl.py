"""`kata-agent-ctl --vm`: a guest of its own, with a container from nothing to removed, and nothing left afterwards."""

from __future__ import annotations

import base64
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
from kata.agent_ctl.catalog import RPCS
from kata.oci.default import default_spec
from kata.runtime.ledger.journal import STATE_ROOT
from tests.support import leaks
from tests.support.images import busybox_rootfs

pytestmark = [pytest.mark.vm, pytest.mark.timeout(240)]

AGENT_CTL = str(Path(sys.executable).with_name("kata-agent-ctl"))
AGENT = Path(__file__).parents[2] / "docs/agent.md"
IDS = "agent-ctl-"
TIMEOUT_S = 120.0
#: Each RPC, in an order in which it can work.
EACH_RPC = """\
Check
Version
GetGuestDetails
StartTracing
CreateSandbox
CreateContainer cid=each OCI.Process.Args=sleep OCI.Process.Args=1000
StartContainer
StatsContainer
UpdateContainer resources.Memory.Limit=33554432
PauseContainer
ResumeContainer
ExecProcess process.Terminal=true process.Args=cat
TtyWinResize row=24 column=80
CloseStdin
SignalProcess
WaitProcess
ExecProcess process.Args=cat
WriteStdin data=hello
ReadStdout len=5
WriteStdin data=""
ReadStderr len=5
WaitProcess
ExecProcess process.Args=dd process.Args=if=/dev/zero process.Args=of=/dev/null process.Args=bs=100M
GetOOMEvent
ListInterfaces
UpdateInterface interface.name=lo interface.IPAddresses[0].address=127.0.0.2 interface.IPAddresses[0].mask=32
UpdateRoutes routes.Routes[0].dest=198.51.100.0/24 routes.Routes[0].device=lo
ListRoutes
AddARPNeighbors json://{"neighbors": {"ARPNeighbors": [{"toIPAddress": {"address": "198.51.100.1"}, "device": "lo", \
"lladdr": "02:00:00:00:00:01"}]}}
SetIPTables data="*filter\\n:INPUT DROP\\nCOMMIT\\n"
GetIPTables
OnlineCPUMem
ReseedRandomDev
SetGuestDateTime
CopyFile path=/run/kata-containers/shared/containers/copied file_size=5 file_mode=0o100644 data=hello
GetVolumeStats volume_guest_path=/run/kata-containers/sandbox/shm
ResizeVolume volume_guest_path=/run/kata-containers/sandbox/shm
AddSwap PCIPath=2
AddSwapPath path=/dev/vda
GetMetrics
StopTracing
GetDiagnosticData log_type=termination_log
MemAgentCompactSet
MemAgentMemcgSet
MemHotplugByProbe
RemoveStaleVirtiofsShareMounts
SetPolicy
UpdateEphemeralMounts
RemoveContainer
DestroySandbox
"""
#: How those end that do not succeed here: shm is not on a disk, and the guest's only disk is no swap space.
NOT_OK = {"ResizeVolume": "INVALID_ARGUMENT", "AddSwap": "FAILED_PRECONDITION", "AddSwapPath": "FAILED_PRECONDITION"}
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


def test_each_rpc(bundle: Path) -> None:
    """Those that the agent has work; the others are named in docs/agent.md."""
    result = connect(bundle, "--json", "--ignore-errors", "--timeout", "60s", "--interactive", input=EACH_RPC.encode())
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    ended = {answer["rpc"]: answer["error"]["code"] if "error" in answer else "OK" for answer in answers}
    assert ended.keys() == RPCS.keys()
    table = AGENT.read_text(encoding="utf-8").partition("answered with UNIMPLEMENTED")[2].partition("A failed call")[0]
    refused = {name: "UNIMPLEMENTED" for name in re.findall(r"\w+", table) if name in RPCS}
    assert {rpc: code for rpc, code in ended.items() if code != "OK"} == {**refused, **NOT_OK}
    said = {answer["rpc"]: answer.get("answer") for answer in answers}
    assert said["GetOOMEvent"] == {"container_id": "each"}
    assert base64.b64decode(said["ReadStdout"]["data"]) == b"hello"
    assert b":INPUT DROP" in base64.b64decode(said["GetIPTables"]["data"])
    assert {"dest": "198.51.100.0/24", "device": "lo"}.items() <= said["ListRoutes"]["Routes"][0].items()


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
