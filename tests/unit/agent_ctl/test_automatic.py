from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kata.agent_ctl.automatic import ForeignGuest, Values, build, random_id
from kata.agent_ctl.script import Call, read_all
from kata.errors import InvalidArgument
from kata.oci.default import default_spec
from kata.oci.edit import GUEST_OCI_VERSION
from kata.oci.spec import load_bundle
from kata.runtime.agent_client.client import READ_SIZE


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def requests(values: Values, *lines: str) -> list[Any]:
    """The requests of a script."""
    built = []
    for step in read_all(lines):
        assert isinstance(step.action, Call)
        request, values = build(step.action.rpc, step.action.arguments, values, ForeignGuest(), read)
        built.append(request)
    return built


@pytest.fixture
def with_bundle(tmp_path: Path) -> Values:
    (tmp_path / "rootfs").mkdir()
    spec = default_spec(("sh", "-c", "true"), rootfs="rootfs", hostname="pod")
    spec["ociVersion"] = "1.2.1"
    (tmp_path / "config.json").write_text(json.dumps(spec))
    return Values(bundle=load_bundle(tmp_path))


def test_ids_are_those_of_the_commands_before(with_bundle: Values) -> None:
    sandbox, first, start, second, remove, again, stats = requests(
        with_bundle,
        "CreateSandbox sid=s1",
        "CreateContainer cid=one",
        "StartContainer",
        "CreateContainer container_id=two",
        "RemoveContainer",
        "StartContainer cid=one sid=s2",
        "StatsContainer",
    )
    assert sandbox.sandbox_id == "s1"
    assert (first.container_id, first.exec_id, start.container_id) == ("one", "one", "one")
    assert (second.container_id, second.exec_id, remove.container_id) == ("two", "two", "two")
    assert (again.container_id, stats.container_id) == ("one", "one")


def test_a_process_is_the_last_that_was_executed_until_it_has_been_waited_for() -> None:
    _, first, read, terminal, first_wait, init, second, other = requests(
        Values(),
        "SignalProcess cid=one",
        "ExecProcess",
        "ReadStdout",
        "TtyWinResize row=1 column=2",
        "WaitProcess",
        "WaitProcess",
        "ExecProcess exec_id=e",
        "SignalProcess cid=two",
    )
    assert first.exec_id.startswith("exec-")
    assert {one.exec_id for one in (read, terminal, first_wait)} == {first.exec_id}
    assert (init.exec_id, second.exec_id, other.exec_id) == ("", "e", "")
    (_, signal, whole) = requests(Values(), "ExecProcess cid=one", "SignalProcess exec_id=", "StatsContainer")
    assert (signal.exec_id, whole.container_id) == ("", "one")


def test_ids_that_nobody_has_named_are_random() -> None:
    assert len({random_id() for _ in range(10)}) == 10
    first, second = requests(Values(), "CreateSandbox", "StartContainer")
    assert (len(first.sandbox_id), len(second.container_id)) == (64, 64)
    assert first.sandbox_id != requests(Values(), "CreateSandbox")[0].sandbox_id


def test_the_spec_is_the_bundles_as_a_guest_has_to_have_it(with_bundle: Values, tmp_path: Path) -> None:
    (request,) = requests(with_bundle, "CreateContainer OCI.Process.Args=ls")
    assert (request.OCI.Version, request.OCI.Root.Path) == (GUEST_OCI_VERSION, f"{tmp_path}/rootfs")
    assert list(request.OCI.Process.Args) == ["ls"]
    assert "pid" not in {entry.Type for entry in request.OCI.Linux.Namespaces}, "the agent decides"


def test_another_spec_stays_for_the_commands_that_follow(with_bundle: Values, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    spec = default_spec(("date",), rootfs="/there", hostname="")
    (other / "config.json").write_text(json.dumps(spec))
    first, process, second = requests(
        with_bundle, f"CreateContainer spec=file://{other}/config.json", "ExecProcess", "CreateContainer"
    )
    assert (list(first.OCI.Process.Args), first.OCI.Root.Path) == (["date"], "/there")
    assert (list(process.process.Args), list(second.OCI.Process.Args)) == (["date"], ["date"])
    (alone,) = requests(Values(), f"CreateContainer spec='json://{json.dumps(spec)}'")
    assert list(alone.OCI.Process.Args) == ["date"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("CreateContainer", "CreateContainer has no spec"),
        ("CreateContainer spec=x", "spec 'x' is neither json://… nor file:///PATH"),
        ("CreateContainer spec=json://{}", "spec: ociVersion is missing"),
    ],
)
def test_a_container_without_a_spec(line: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        requests(Values(), line)
    assert caught.value.message == said


def test_what_else_comes_by_itself() -> None:
    values = Values(terminal=(24, 80))
    stdout, kill, details, seed, clock, resize, process = requests(
        values,
        "ReadStdout",
        "SignalProcess",
        "GetGuestDetails mem_block_size=false",
        "ReseedRandomDev",
        "SetGuestDateTime Usec=7",
        "TtyWinResize row=5",
        "ExecProcess process.Args=ls",
    )
    assert (stdout.len, kill.signal, len(seed.data)) == (READ_SIZE, 9, 64)
    assert (details.mem_block_size, details.mem_hotplug_probe) == (False, True)
    assert clock.Sec > 1_700_000_000
    assert (clock.Usec, resize.row, resize.column) == (7, 5, 80)
    assert process.exec_id.startswith("exec-")
    assert (list(process.process.Args), process.process.Cwd) == (["ls"], "/")


def test_nothing_comes_by_itself_if_it_is_not_wanted(with_bundle: Values) -> None:
    lines = ("CreateSandbox", "CreateContainer", "ReadStdout", "SignalProcess", "GetGuestDetails", "ExecProcess")
    built = requests(replace(with_bundle, automatic=False), *lines)
    assert [request.ByteSize() for request in built] == [0] * len(lines)
    assert requests(Values(automatic=False), "StartContainer cid=x")[0].container_id == "x"
