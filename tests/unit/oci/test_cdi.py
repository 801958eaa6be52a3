"""Devices by their names: files of the Container Device Interface, and what they change in a spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kata.errors import FailedPrecondition, InvalidArgument
from kata.oci import cdi

GPU = {
    "cdiVersion": "0.6.0",
    "kind": "vendor.com/gpu",
    "devices": [
        {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null"}]}},
        {"name": "1", "containerEdits": {"deviceNodes": [{"path": "/dev/zero", "permissions": "r", "gid": 44}]}},
    ],
    "containerEdits": {
        "env": ["GPU=yes", "PATH=/opt/gpu"],
        "mounts": [{"hostPath": "/lib/gpu", "containerPath": "/usr/lib/gpu"}],
        "hooks": [{"hookName": "createContainer", "path": "/bin/ldconfig", "args": ["ldconfig"]}],
        "additionalGids": [44],
    },
}
SPEC: Any = {
    "process": {"env": ["PATH=/bin", "A=1"], "user": {"uid": 7}},
    "linux": {
        "devices": [{"path": "/dev/gpu0", "type": "c", "major": 9, "minor": 9}],
        "resources": {"pids": {"limit": 5}},
    },
    "mounts": [{"destination": "/proc"}],
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "gpu.json").write_text(json.dumps(GPU))
    (tmp_path / "notes.txt").write_text("kind: other.com/thing")
    return tmp_path


def test_names_in_annotations() -> None:
    annotations = {
        "cdi.k8s.io/b": "vendor.com/gpu=1,vendor.com/gpu=0",
        "cdi.k8s.io/a": "vendor.com/gpu=0",
        "other": "x",
    }
    assert cdi.wanted(annotations) == ["vendor.com/gpu=0", "vendor.com/gpu=1"]
    assert cdi.wanted({}) == []


@pytest.mark.parametrize("name", ["", "gpu", "vendor.com/gpu", "vendor.com/gpu=", "../x/y=z", "a/b=c d", "a/b=c\n"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"annotation cdi.k8s.io/a: invalid CDI device name"):
        cdi.wanted({"cdi.k8s.io/a": name})


def test_two_devices_of_one_file(directory: Path) -> None:
    edits = cdi.find(["vendor.com/gpu=0", "vendor.com/gpu=1"], [str(directory)])
    assert edits is not None
    before = json.dumps(SPEC)
    made = cdi.apply(SPEC, edits)
    assert json.dumps(SPEC) == before
    assert made["process"]["env"] == ["PATH=/opt/gpu", "A=1", "GPU=yes"]
    assert made["process"]["user"] == {"uid": 7, "additionalGids": [44]}
    first, second = made["linux"]["devices"]
    assert (first["path"], first["type"], first["major"], first["minor"]) == ("/dev/gpu0", "c", 1, 3)
    assert (second["path"], second["minor"], second["gid"]) == ("/dev/zero", 5, 44)
    assert made["linux"]["resources"] == {
        "pids": {"limit": 5},
        "devices": [
            {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"},
        ],
    }
    assert made["mounts"][1:] == [
        {"destination": "/usr/lib/gpu", "source": "/lib/gpu", "type": "bind", "options": ["rbind", "ro"]}
    ], "once for both"
    assert made["hooks"] == {"createContainer": [{"path": "/bin/ldconfig", "args": ["ldconfig"]}]}


DISK = """
cdiVersion: "0.6.0"
kind: vendor.com/disk
devices:
  - name: fast
    containerEdits:
      deviceNodes:
        - {path: /dev/fast, hostPath: /dev/null, permissions: r}
"""


def test_vendors_write_yaml(tmp_path: Path) -> None:
    (tmp_path / "disk.yaml").write_text(DISK)
    edits = cdi.find(["vendor.com/disk=fast"], [str(tmp_path)])
    assert edits is not None
    (device,) = cdi.apply({}, edits)["linux"]["devices"]
    assert (device["path"], device["minor"]) == ("/dev/fast", 3)
    (tmp_path / "disk.yaml").write_text("kind: [")
    with pytest.raises(FailedPrecondition, match=r"cannot read CDI specification .*disk\.yaml"):
        cdi.find(["vendor.com/disk=fast"], [str(tmp_path)])


def test_what_the_host_knows_is_the_hosts_and_the_rest_the_guests(directory: Path) -> None:
    annotations = {
        "cdi.k8s.io/both": "vendor.com/gpu=0,guest.com/chip=1",
        "cdi.k8s.io/host": "vendor.com/gpu=1",
        "cdi.k8s.io/guest": "guest.com/chip=2",
        "other": "vendor.com/gpu=1",
    }
    spec: Any = {**SPEC, "annotations": annotations}
    made = cdi.by_host(spec, [str(directory)])
    assert [one["path"] for one in made["linux"]["devices"]] == ["/dev/gpu0", "/dev/zero"]
    assert made["annotations"] == {
        "cdi.k8s.io/both": "guest.com/chip=1",
        "cdi.k8s.io/guest": "guest.com/chip=2",
        "other": "vendor.com/gpu=1",
    }
    assert spec["annotations"] is annotations
    assert cdi.wanted(made["annotations"]) == ["guest.com/chip=1", "guest.com/chip=2"]
    assert cdi.by_host(SPEC, [str(directory)]) is SPEC


def test_what_is_not_there_yet(directory: Path) -> None:
    assert cdi.find(["vendor.com/gpu=2"], [str(directory)]) is None
    assert cdi.find(["vendor.com/gpu=0"], [str(directory / "nothing")]) is None
    later: Any = {
        "kind": "vendor.com/late",
        "devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nowhere"}]}}],
    }
    (directory / "late.json").write_text(json.dumps(later))
    assert cdi.find(["vendor.com/late=0"], [str(directory)]) is None


def test_a_later_directory_counts(directory: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    other.mkdir()
    (other / "gpu.json").write_text(json.dumps({"kind": "vendor.com/gpu", "devices": [{"name": "0"}]}))
    assert cdi.find(["vendor.com/gpu=0"], [str(directory), str(other)]) == [{}, {}]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "[]",
        "{}",
        '{"kind": "a/b", "devices": [1]}',
        '{"kind": "a/b", "devices": [{}]}',
        '{"kind": "a/b", "devices": [], "containerEdits": ["env"]}',
        '{"kind": "a/b", "devices": [{"name": "c", "containerEdits": {"deviceNodes": ["/dev/null"]}}]}',
        # A number would be taken for an open file.
        '{"kind": "a/b", "devices": [], "containerEdits": {"deviceNodes": [{"path": "/x", "hostPath": 1}]}}',
        '{"kind": ["a/b"], "devices": [{"name": "c"}]}',
    ],
)
def test_a_broken_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(FailedPrecondition, match=r"broken\.json"):
        cdi.find(["a/b=c"], [str(tmp_path)])


def test_a_path_is_told_on_one_line() -> None:
    with pytest.raises(FailedPrecondition, match="CDI: device") as caught:
        cdi.apply(SPEC, [{"deviceNodes": [{"path": "/dev/a\nb"}]}])
    assert caught.value.message.isprintable()


def test_what_is_no_yaml_is_told_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: b: c")
    with pytest.raises(FailedPrecondition, match=r"broken\.yaml: mapping values are not allowed here") as caught:
        cdi.find(["a/b=c"], [str(tmp_path)])
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "edit",
    [
        {"deviceNodes": [{"path": "/dev/nowhere"}]},
        {"deviceNodes": [{"path": "/proc"}]},
        {"deviceNodes": [{}]},
        {"mounts": [{"hostPath": "/x"}]},
        {"hooks": [{"hookName": "sometimes", "path": "/x"}]},
        {"env": [1]},
    ],
)
def test_what_is_no_edit(edit: Any) -> None:
    with pytest.raises(FailedPrecondition, match="CDI"):
        cdi.apply(SPEC, [edit])
