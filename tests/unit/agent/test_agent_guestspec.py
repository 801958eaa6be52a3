from __future__ import annotations

import copy
from typing import Any

from kata.agent.guestspec import Namespaces, finish, pids_of, without_quota
from kata.oci.convert import from_proto, to_proto
from kata.oci.edit import for_guest, join_pids

SHARED = Namespaces(ipc="/ns/ipc", uts="/ns/uts", network="/proc/1/ns/net")


def edited(spec: dict[str, Any], namespaces: Namespaces = SHARED, root: tuple[int, int] | None = (254, 0)) -> Any:
    before = copy.deepcopy(spec)
    result = finish(spec, rootfs="/b/rootfs", cgroup="/kata/c", namespaces=namespaces, root_device=root)
    assert spec == before
    return result


def kinds(result: Any) -> dict[str, str]:
    return {entry["type"]: entry.get("path", "") for entry in result["linux"]["namespaces"]}


def test_namespaces_are_the_sandbox_s() -> None:
    spec = {
        "hostname": "h",
        "linux": {
            "namespaces": [
                {"type": "mount"},
                {"type": "ipc", "path": "/proc/99/ns/ipc"},
                {"type": "network", "path": "/var/run/netns/x"},
                {"type": "time"},
            ]
        },
    }
    result = edited(spec)
    assert kinds(result) == {
        "mount": "", "ipc": "/ns/ipc", "uts": "/ns/uts", "network": "/proc/1/ns/net", "pid": "", "cgroup": "",
    }  # fmt: skip
    assert result["hostname"] == "h"
    assert kinds(edited(spec, SHARED._replace(pid="/ns/pid")))["pid"] == "/ns/pid"


def test_root_and_cgroup_are_the_guest_s() -> None:
    result = edited({"root": {"path": "/x", "readonly": True}, "linux": {"cgroupsPath": "system.slice:cri:c"}})
    assert result["root"] == {"path": "/b/rootfs", "readonly": True}
    assert result["linux"]["cgroupsPath"] == "/kata/c"


def test_a_personality_is_the_container_s_own() -> None:
    assert edited({})["linux"]["personality"] == {"domain": "LINUX"}
    assert edited({"linux": {"personality": {"domain": "LINUX32"}}})["linux"]["personality"] == {"domain": "LINUX32"}


def test_the_root_disk_is_denied_last() -> None:
    denied = {"allow": False, "type": "b", "major": 254, "minor": 0, "access": "rwm"}
    assert edited({})["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}, denied]
    rules = [{"allow": False, "access": "rwm"}]
    spec = {"linux": {"resources": {"devices": rules, "pids": {"limit": 5}}}}
    resources = edited(spec)["linux"]["resources"]
    assert resources == {"devices": [*rules, denied], "pids": {"limit": 5}}
    assert "resources" not in edited({}, root=None)["linux"]


def test_a_user_namespace_cannot_rename_the_sandbox() -> None:
    assert "hostname" not in edited({"hostname": "h", "linux": {"namespaces": [{"type": "user"}]}})


def test_sysfs_has_its_options_in_a_user_namespace_too() -> None:
    proc = {"destination": "/proc", "type": "proc"}
    sysfs = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"]}
    mapped = edited({"mounts": [proc, sysfs], "linux": {"namespaces": [{"type": "user"}]}})
    bound = {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "nosuid", "ro"]}
    assert mapped["mounts"] == [proc, bound]
    assert edited({"mounts": [proc, sysfs]})["mounts"] == [proc, sysfs]


def test_a_quota_is_kept_for_later() -> None:
    spec = {"linux": {"resources": {"cpu": {"shares": 5, "quota": 1000, "period": 50_000}, "pids": {"limit": 1}}}}
    before = copy.deepcopy(spec)
    left, files = without_quota(spec)
    assert spec == before
    assert left == {"linux": {"resources": {"cpu": {"shares": 5}, "pids": {"limit": 1}}}}
    assert files == {"cpu.max": "1000 50000"}


def test_a_unified_quota_wins() -> None:
    unified = {"cpu.max": "7000 100000", "cpu.max.burst": "7", "memory.high": "1"}
    left, files = without_quota({"linux": {"resources": {"cpu": {"quota": 1000}, "unified": unified}}})
    assert left == {"linux": {"resources": {"cpu": {}, "unified": {"memory.high": "1"}}}}
    assert list(files.items()) == [("cpu.max", "7000 100000"), ("cpu.max.burst", "7")]


def test_without_a_quota_nothing_changes() -> None:
    for cpu in ({}, {"quota": -1, "period": 100_000}, {"period": 50_000}):
        spec = {"linux": {"resources": {"cpu": cpu}}}
        assert without_quota(spec) == (spec, {})
    assert without_quota({}) == ({}, {})


def test_whose_pid_namespace_a_container_joins() -> None:
    """By the other's id; a path of the host, which other hosts may send, means nothing here."""
    given: Any = {"linux": {"namespaces": [{"type": "mount"}, {"type": "pid", "path": "/proc/7/ns/pid"}]}}
    assert pids_of(given) == pids_of({}) == pids_of({"linux": {"namespaces": [{"type": "pid"}]}}) == ""
    joined = join_pids(for_guest(given, rootfs="/r", keep_seccomp=False), "target")
    assert pids_of(from_proto(to_proto(joined))) == "target"
    assert given["linux"]["namespaces"][1]["path"] == "/proc/7/ns/pid", "the argument is not changed"
