"""What of a spec the guest gets to see."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from kata.oci import edit
from kata.oci.spec import Capabilities, DeviceCgroup, LinuxResources, Spec

_DATA = Path(__file__).with_name("data")
_ROOTFS = "/run/kata-containers/shared/containers/7e2b/rootfs"
_DENY_ALL: DeviceCgroup = {"allow": False, "access": "rwm"}


def _read(name: str) -> Spec:
    value: Spec = json.loads((_DATA / f"{name}.json").read_text())
    return value


def _edited(name: str = "cri", *, keep_seccomp: bool = True) -> Spec:
    return edit.for_guest(_read(name), rootfs=_ROOTFS, keep_seccomp=keep_seccomp)


def _linux(**parts: object) -> Spec:
    value: Spec = {"ociVersion": "1.0.2", "linux": parts}  # type: ignore[typeddict-item]
    return value


def _allow(kind: str, major: int | None = None, minor: int | None = None) -> DeviceCgroup:
    rule = {"allow": True, "type": kind, "major": major, "minor": minor, "access": "rwm"}
    return {key: value for key, value in rule.items() if value is not None}  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["cri", "ctr", "runc"])
@pytest.mark.parametrize("keep_seccomp", [True, False])
def test_the_input_is_not_changed(name: str, keep_seccomp: bool) -> None:
    value = _read(name)
    before = copy.deepcopy(value)
    edit.for_guest(value, rootfs=_ROOTFS, keep_seccomp=keep_seccomp)
    assert value == before


@pytest.mark.parametrize("name", ["cri", "ctr", "runc"])
def test_editing_twice_is_editing_once(name: str) -> None:
    once = _edited(name)
    assert edit.for_guest(once, rootfs=_ROOTFS, keep_seccomp=True) == once


def test_root_is_the_guests() -> None:
    assert _edited()["root"] == {"path": _ROOTFS, "readonly": True}


@pytest.mark.parametrize("version", ["1.0.2", "1.2.1", "1.99.0"])
def test_the_version_is_one_that_every_crun_takes(version: str) -> None:
    """1.8 refuses each that does not contain "1.0": containerd 2.1 and Docker 28 write 1.2.1."""
    edited = edit.for_guest({"ociVersion": version}, rootfs=_ROOTFS, keep_seccomp=True)
    assert edited["ociVersion"] == "1.0.2"


def test_capabilities_of_a_newer_kernel_go() -> None:
    sets: Capabilities = {"bounding": ["CAP_KILL", "CAP_FUTURE"], "ambient": ["CAP_FUTURE"]}
    process = edit.process_for_guest({"args": ["true"], "capabilities": sets})
    assert process["capabilities"] == {"bounding": ["CAP_KILL"], "ambient": []}
    assert sets["ambient"] == ["CAP_FUTURE"]


def test_only_hooks_of_the_guest_stay() -> None:
    assert _edited()["hooks"] == {"startContainer": [{"path": "/usr/bin/guest-hook"}]}
    assert "hooks" not in _edited("ctr")
    host_only: Spec = {"ociVersion": "1.0.2", "hooks": {"prestart": [{"path": "/h"}]}}
    assert "hooks" not in edit.for_guest(host_only, rootfs="/r", keep_seccomp=True)


def test_namespaces() -> None:
    assert _edited()["linux"]["namespaces"] == [{"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]


def test_a_user_namespace_needs_a_mapping() -> None:
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    joined = _linux(namespaces=[{"type": "user", "path": "/proc/1/ns/user"}, {"type": "mount"}])
    mapped = _linux(namespaces=[{"type": "user", "path": "/proc/1/ns/user"}], uidMappings=mapping, gidMappings=mapping)
    assert edit.for_guest(joined, rootfs="/r", keep_seccomp=True)["linux"]["namespaces"] == [{"type": "mount"}]
    assert edit.for_guest(mapped, rootfs="/r", keep_seccomp=True)["linux"]["namespaces"] == [{"type": "user"}]


@pytest.mark.parametrize(
    ("namespaces", "shared"),
    [
        ([{"type": "pid", "path": "/proc/7/ns/pid"}], True),
        ([{"type": "pid"}, {"type": "ipc", "path": "/proc/7/ns/ipc"}], False),
        ([{"type": "pid", "path": ""}], False),
        ([], False),
    ],
)
def test_shared_pids(namespaces: list[dict[str, str]], shared: bool) -> None:
    assert edit.shares_pids(_linux(namespaces=namespaces)) is shared
    assert edit.shares_pids({"ociVersion": "1.0.2"}) is False


def test_policies_of_the_hosts_kernel_go() -> None:
    value = _edited()
    assert not {"apparmorProfile", "selinuxLabel"} & value["process"].keys()
    assert not {"mountLabel", "cgroupsPath", "intelRdt"} & value["linux"].keys()
    assert "run.oci.handler" not in value["annotations"]
    assert value["annotations"]["io.kubernetes.cri.container-name"] == "web"


def test_what_means_the_same_stays() -> None:
    before, after = _read("cri"), _edited()
    for key in ("user", "args", "env", "cwd", "capabilities", "noNewPrivileges", "oomScoreAdj"):
        assert after["process"].get(key) == before["process"].get(key)
    for key in ("sysctl", "maskedPaths", "readonlyPaths", "rootfsPropagation", "devices"):
        assert after["linux"].get(key) == before["linux"].get(key)
    assert after["mounts"] == before["mounts"]


def test_seccomp_is_a_choice() -> None:
    assert _edited(keep_seccomp=True)["linux"]["seccomp"] == _read("cri")["linux"]["seccomp"]
    assert "seccomp" not in _edited(keep_seccomp=False)["linux"]


def test_limits_of_a_pod() -> None:
    resources = _edited()["linux"]["resources"]
    rules = resources.pop("devices")
    assert resources == {
        "memory": {"limit": 134217728, "swap": 134217728},
        "cpu": {"shares": 102, "quota": 20000, "period": 100000},
        "pids": {"limit": 1024},
        "hugepageLimits": [{"pageSize": "1GB", "limit": 1073741824}],
        "unified": {"memory.high": "120000000"},
    }
    # The host's own disk (8:0) and a character device with a number of the day (248:1) are something else in the guest;
    # 253:0 is a device of the container, which the agent renumbers.
    assert rules == [_DENY_ALL, _allow("c", 1, 3), _allow("c", 136), _allow("b", 253, 0)]


def test_default_rules_of_a_container_all_stay() -> None:
    before = _read("ctr")["linux"]["resources"]["devices"]
    assert _edited("ctr")["linux"]["resources"]["devices"] == before


@pytest.mark.parametrize(
    "rule",
    [
        _allow("a"),
        _allow("c"),
        _allow("b"),
        _allow("c", -1, -1),
        _allow("c", 10, 200),
        _allow("c", 10, 229),
        _allow("c", 5, 1),
        {"allow": False, "type": "b", "major": 8, "access": "w"},
    ],
)
def test_rules_that_mean_the_same_everywhere_stay(rule: DeviceCgroup) -> None:
    assert edit.resources_for_guest({"devices": [_DENY_ALL, rule]}) == {"devices": [_DENY_ALL, rule]}


@pytest.mark.parametrize(
    "rule",
    [
        _allow("b", 8, 0),
        _allow("b", 1, 3),
        _allow("c", 248),
        _allow("c", None, 3),
        _allow("c", 10),
        _allow("c", 10, 58),
    ],
)
def test_rules_about_devices_of_the_host_go(rule: DeviceCgroup) -> None:
    assert edit.resources_for_guest({"devices": [_DENY_ALL, rule]}) == {"devices": [_DENY_ALL]}


def test_no_rule_left_does_not_mean_everything_is_allowed() -> None:
    assert edit.resources_for_guest({"devices": [_allow("b", 8, 0)]}) == {"devices": [_DENY_ALL]}
    assert edit.resources_for_guest({"devices": []}) == {"devices": []}
    assert "devices" not in edit.resources_for_guest({})


def test_an_unbuffered_device_is_a_character_device() -> None:
    resources: LinuxResources = {"devices": [_DENY_ALL, _allow("c", 240, 0)]}
    kept = edit.resources_for_guest(resources, [{"path": "/dev/x", "type": "u", "major": 240, "minor": 0}])
    assert kept == resources


def test_an_update_brings_no_device_rules() -> None:
    resources: LinuxResources = {"devices": [_DENY_ALL], "memory": {"limit": 1, "swappiness": 0}, "cpu": {"cpus": "0"}}
    assert edit.update_for_guest(resources) == {"memory": {"limit": 1}, "cpu": {}}
    assert resources["memory"] == {"limit": 1, "swappiness": 0}
