"""Specs over the agent's protocol: what the user wrote is what crun reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Required, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.errors import InvalidArgument
from kata.oci import convert, spec
from kata.oci.spec import Device, DeviceCgroup, LinuxResources, Process, Spec
from kata.protocols import oci_pb2

_DATA = Path(__file__).with_name("data")


def _carried(value: Spec) -> Spec:
    wire = convert.to_proto(value).SerializeToString()
    return convert.from_proto(oci_pb2.Spec.FromString(wire))


def _carried_resources(value: LinuxResources) -> LinuxResources:
    wire = convert.resources_to_proto(value).SerializeToString()
    return convert.resources_from_proto(oci_pb2.LinuxResources.FromString(wire))


@pytest.mark.parametrize("name", ["runc", "ctr", "cri"])
def test_real_specs_arrive_whole(name: str) -> None:
    wanted = json.loads((_DATA / f"{name}.json").read_text())
    # Zeros that say what absence says.
    wanted["process"].setdefault("oomScoreAdj", 0)
    for device in wanted["linux"].get("devices", ()):
        for key in ("uid", "gid"):
            if device[key] == 0:
                del device[key]
    wanted["linux"]["resources"].get("memory", {}).pop("disableOOMKiller", None)
    assert _carried(json.loads((_DATA / f"{name}.json").read_text())) == wanted
    assert convert.dropped_fields("Spec", wanted) == []


@pytest.mark.parametrize(
    "rule",
    [
        {"allow": False, "access": "rwm"},
        {"allow": False},
        {"allow": True, "type": "a", "access": "rwm"},
        {"allow": True, "type": "c", "major": 136, "access": "rwm"},
        {"allow": True, "type": "c", "minor": 3, "access": "r"},
        {"allow": True, "type": "c", "major": 5, "minor": 0, "access": "rwm"},
        {"allow": True, "type": "b", "major": 0, "minor": 0, "access": "m"},
    ],
)
def test_device_rules_keep_absent_and_zero_apart(rule: DeviceCgroup) -> None:
    assert _carried_resources({"devices": [rule]}) == {"devices": [rule]}


def test_minus_one_of_a_rule_means_every_number() -> None:
    rule: DeviceCgroup = {"allow": True, "type": "c", "major": -1, "minor": -1, "access": "m"}
    assert _carried_resources({"devices": [rule]}) == {"devices": [{"allow": True, "type": "c", "access": "m"}]}


@pytest.mark.parametrize(
    ("mode", "arrives"),
    [({}, {}), ({"fileMode": 0}, {"fileMode": 0}), ({"fileMode": 0o666}, {"fileMode": 0o666})],
    ids=["absent", "none", "666"],
)
@pytest.mark.parametrize("kind", ["c", "b", "u", "p"])
def test_device_modes(kind: Literal["c", "b", "u", "p"], mode: dict[str, int], arrives: dict[str, int]) -> None:
    node: dict[str, Any] = {"path": "/dev/x", "type": kind, "major": 0, "minor": 0}
    device: Device = {**node, **mode}  # type: ignore[typeddict-item]
    assert _carried({"ociVersion": "1.0.0", "linux": {"devices": [device]}}).get("linux") == {
        "devices": [{**node, **arrives}]
    }


def test_type_bits_of_a_device_mode_are_not_for_crun() -> None:
    device: Device = {"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 0o20666}
    arrived = _carried({"ociVersion": "1.0.0", "linux": {"devices": [device]}})
    assert arrived["linux"]["devices"][0]["fileMode"] == 0o666


@pytest.mark.parametrize(
    ("given_", "arrives"),
    [
        ({"memory": {"limit": 0, "swap": -1}}, {"memory": {"swap": -1}}),
        (
            {"memory": {"disableOOMKiller": True, "swappiness": 60}},
            {"memory": {"disableOOMKiller": True, "swappiness": 60}},
        ),
        ({"memory": {}}, {"memory": {}}),
        ({"cpu": {"quota": -1, "period": 100000, "shares": 0}}, {"cpu": {"quota": -1, "period": 100000}}),
        ({"cpu": {"idle": 0}}, {"cpu": {"idle": 0}}),
        ({"pids": {"limit": 0}}, {"pids": {"limit": 0}}),
        ({"pids": {"limit": -1}}, {"pids": {"limit": -1}}),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 0}]}},
            {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 0}]}},
        ),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}, {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}),
        ({"unified": {"memory.high": "1"}}, {"unified": {"memory.high": "1"}}),
        ({}, {}),
    ],
)
def test_limits(given_: LinuxResources, arrives: LinuxResources) -> None:
    assert _carried_resources(given_) == arrives


def test_process() -> None:
    process: Process = {
        "args": ["sh", ""],
        "cwd": "/",
        "env": ["A="],
        "user": {"uid": 0, "gid": 0, "umask": 0, "additionalGids": [0]},
        "capabilities": {},
        "consoleSize": {"height": 0, "width": 80},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2**64 - 1, "soft": 0}],
        "oomScoreAdj": 0,
    }
    wire = convert.process_to_proto(process).SerializeToString()
    assert convert.process_from_proto(oci_pb2.Process.FromString(wire)) == process


def test_seccomp_errno_of_zero_is_not_the_default() -> None:
    seccomp: spec.Seccomp = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 0,
        "syscalls": [
            {"names": ["a"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0},
            {"names": ["b"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["c"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
        ],
    }
    assert _carried({"ociVersion": "1.0.0", "linux": {"seccomp": seccomp}})["linux"]["seccomp"] == seccomp


def test_dropped_fields() -> None:
    value: Spec = {
        "ociVersion": "1.2.0",
        "domainname": "example.org",
        "process": {"scheduler": {"policy": "SCHED_IDLE"}, "ioPriority": {}, "args": ["a"], "user": {"umask": 63}},
        "mounts": [
            {"destination": "/a"},
            {"destination": "/b", "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]},
        ],
        "linux": {
            "timeOffsets": {"boottime": {"secs": 1}},
            "personality": {"domain": "LINUX32"},
            "resources": {
                "memory": {"swappiness": 0, "useHierarchy": False},
                "rdma": {"mlx5": {}},
                "cpu": {"burst": 0},
            },
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x", "listenerMetadata": ""},
            "intelRdt": {"closID": "gold"},
        },
    }
    assert sorted(convert.dropped_fields("Spec", value)) == [
        "linux.intelRdt.closID",
        "linux.personality",
        "linux.resources.cpu.burst",
        "linux.resources.memory.swappiness",
        "linux.resources.memory.useHierarchy",
        "linux.resources.rdma",
        "linux.seccomp.listenerPath",
        "linux.timeOffsets",
        "mounts[1].uidMappings",
        "process.scheduler",
    ]


@pytest.mark.parametrize(
    "value",
    [
        {"process": {"user": {"uid": -1}}},
        {"process": {"args": [1]}},
        {"hostname": 5},
        {"hostname": "\ud800"},
        {"annotations": {"a": None}},
    ],
)
def test_values_that_nobody_checked_are_refused(value: Spec) -> None:
    with pytest.raises(InvalidArgument, match=r"^cannot send the spec: "):
        convert.to_proto(value)


def test_every_field_of_the_protocol_is_in_use() -> None:
    """The table speaks of every field there is, by its right name; Solaris and Windows are not for Linux."""
    for name, fields in convert._TABLE.items():
        message = getattr(oci_pb2, name).DESCRIPTOR
        assert {field.name for field in fields} == set(message.fields_by_name) - {"Solaris", "Windows"}, name


def _strategy(kind: Any) -> st.SearchStrategy[Any]:
    """What a schema lets pass."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        entries = {
            key: _strategy(get_args(hint)[0] if get_origin(hint) is Required else hint)
            for key, hint in hints.items()
            if dict[str, Any] not in (hint, *get_args(hint))  # kept opaque, and not carried
        }
        required = {key: entry for key, entry in entries.items() if key in kind.__required_keys__}
        return st.fixed_dictionaries(
            required, optional={key: entry for key, entry in entries.items() if key not in required}
        )
    if origin is Annotated:
        return st.sampled_from([0, 1, arguments[1], arguments[2]]) | st.integers(arguments[1], arguments[2])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(_strategy(arguments[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(_strategy(arguments[0]), _strategy(arguments[1]), max_size=2)
    return st.booleans() if kind is bool else st.text(alphabet="abc/.é ", max_size=4)


def _meaning(value: Any) -> Any:
    """Without what says nothing: empty, zero and false, at every depth."""
    if isinstance(value, dict):
        return {key: kept for key, entry in value.items() if (kept := _meaning(entry)) not in ({}, [], "", 0, False)}
    if isinstance(value, list):
        return [_meaning(entry) for entry in value]
    return value


@given(_strategy(Spec))
def test_whatever_the_schema_lets_pass_arrives(value: Spec) -> None:
    arrived = _carried(value)
    dropped = set(convert.dropped_fields("Spec", value))

    def expected(entry: Any, path: str) -> Any:
        if isinstance(entry, list):
            return [expected(part, f"{path}[{index}]") for index, part in enumerate(entry)]
        if not isinstance(entry, dict):
            return entry
        kept = {
            key: expected(part, inner)
            for key, part in entry.items()
            if (inner := f"{path}.{key}".removeprefix(".")) not in dropped
        }
        if "allow" in kept:  # -1 and absent are the same wildcard; zero is a number
            kept = {key: part for key, part in kept.items() if key not in ("major", "minor") or part >= 0}
        if "fileMode" in kept:
            kept["fileMode"] &= 0o7777
        return kept

    assert _meaning(arrived) == _meaning(expected(value, ""))
    # And what arrived is a fixed point: a second journey changes nothing.
    assert _carried(arrived) == arrived


def _rules(value: Spec) -> list[tuple[Any, ...]]:
    rules = value.get("linux", {}).get("resources", {}).get("devices", [])
    number = {key: lambda rule, key=key: rule[key] if rule.get(key, -1) >= 0 else None for key in ("major", "minor")}
    return [
        (rule["allow"], rule.get("type", ""), number["major"](rule), number["minor"](rule), rule.get("access", ""))
        for rule in rules
    ]


@given(_strategy(Spec))
def test_device_rules_mean_the_same_afterwards(value: Spec) -> None:
    assert _rules(_carried(value)) == _rules(value)
