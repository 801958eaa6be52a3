"""The logs of a real sandbox, read together, and a report about it: even if it hangs."""

from __future__ import annotations

import json
import os
import signal
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata.bugreport.secrets import REMOVED
from kata.cli.main import invoke
from kata.runtime.ledger.processes import processes_of
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX

pytestmark = pytest.mark.containerd

SECRET = "hunter2-of-a-test"


@pytest.fixture(scope="module")
def sandbox(containerd: PrivateContainerd) -> Iterator[tuple[str, str]]:
    """A running sandbox: its id, and what was logged while it started."""
    sandbox_id = unique_id(TEST_PREFIX)
    begin = len(containerd.log_text())
    containerd.ctr("run", "--detach", "--runtime", RUNTIME, BUSYBOX, sandbox_id, "sleep", "600", timeout=180)
    try:
        yield sandbox_id, containerd.log_text()[begin:]
    finally:
        containerd.ctr("tasks", "kill", "--signal", "KILL", sandbox_id, check=False)
        containerd.ctr("tasks", "delete", "--force", sandbox_id, check=False)
        containerd.ctr("containers", "delete", sandbox_id, check=False)


def test_every_line_of_a_start_is_read(
    containerd: PrivateContainerd,
    sandbox: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sandbox_id, logged = sandbox
    log = tmp_path / "containerd.log"
    log.write_text(logged)
    state = containerd.state(sandbox_id)
    files = [log, *sorted(state.glob("*.log.1")), *sorted(state.glob("*.log"))]
    assert state / "console.log" in files
    code = invoke(["logs", "parse", "--ignore-missing-fields", "--quiet", "--output-format", "json", *map(str, files)])
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, ""), "no line is broken"
    entries = json.loads(captured.out)["Entries"]
    lines = {str(file): [line for line in file.read_bytes().split(b"\n") if line.strip()] for file in files}
    assert len(lines[str(log)]) > 5
    for name, wanted in lines.items():
        assert len([one for one in entries if one["Filename"] == name]) == len(wanted), "nothing is lost"
    times = [one["Time"] for one in entries if one["Time"]]
    assert times == sorted(times)
    ours = [one for one in entries if one["Name"] in ("containerd-shim-v2", "kata-agent")]
    shims = [one for one in ours if one["Name"] == "containerd-shim-v2"]
    assert all(one["Time"] and one["Level"] and one["Pid"] and one["Source"] for one in ours)
    assert {one["Sandbox"] for one in shims} == {sandbox_id}
    assert sandbox_id in {one["Container"] for one in shims}


def test_a_sandbox_that_hangs_is_reported_without_its_secrets(
    containerd: PrivateContainerd, sandbox: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox_id, _ = sandbox
    state = containerd.state(sandbox_id)
    pids = [*processes_of(str(state)), *(pid for pid, name in containerd.shims().items() if name == sandbox_id)]
    assert len(pids) >= 2
    path = tmp_path / "report.tar.gz"
    # As a program in the guest may, that has the console.
    with (state / "console.log").open("a") as console:
        console.write(f"DB_PASSWORD={SECRET}\n")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert invoke(["bundle", "-o", str(path)]) == 0
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    with tarfile.open(path) as tar:
        found = {member.name: (tar.extractfile(member) or sys.stdin.buffer).read().decode() for member in tar}
    prefix = f"report/sandboxes/{state.name}"
    assert f"DB_PASSWORD={REMOVED}\n" in found[f"{prefix}/console.log"]
    assert {f"{prefix}/ledger", f"{prefix}/timings.json", "report/env.json", "report/check.json"} <= set(found)
    assert json.loads(found["report/env.json"])["Sandboxes"]["Running"] >= 1
    assert [name for name, text in found.items() if SECRET in text] == []
