from __future__ import annotations

import json

from kata.oci.default import CAPABILITIES, default_spec
from kata.oci.spec import parse_spec


def test_is_a_valid_spec_and_says_what_was_asked() -> None:
    spec = default_spec(
        ["ls", "-l"],
        rootfs="/r",
        hostname="box",
        env=["A=1"],
        cwd="/tmp",
        user={"uid": 5, "gid": 6},
        terminal=True,
        mounts=[{"destination": "/v", "type": "bind", "source": "/s", "options": ["rbind"]}],
        resources={"memory": {"limit": 1 << 30}},
    )
    assert parse_spec(json.dumps(spec)) == spec
    process = spec["process"]
    assert (process["args"], process["env"], process["cwd"]) == (["ls", "-l"], ["A=1"], "/tmp")
    assert process["terminal"] is True
    assert process["user"] == {"uid": 5, "gid": 6}
    assert spec["hostname"] == "box"
    assert spec["mounts"][-1]["destination"] == "/v"
    assert spec["linux"]["resources"]["memory"] == {"limit": 1 << 30}


def test_isolates_like_an_engine() -> None:
    spec = default_spec(["sh"], rootfs="/r", hostname="box")
    linux = spec["linux"]
    assert {entry["type"] for entry in linux["namespaces"]} >= {"pid", "ipc", "uts", "mount", "network"}
    assert not any("path" in entry for entry in linux["namespaces"])
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert {"/proc/kcore", "/sys/firmware"} <= set(linux["maskedPaths"])
    assert "/proc/sysrq-trigger" in linux["readonlyPaths"]
    for powerful in ("CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_DAC_READ_SEARCH"):
        assert powerful not in CAPABILITIES


def test_only_root_starts_with_capabilities() -> None:
    root = default_spec(["sh"], rootfs="/r", hostname="box")["process"]["capabilities"]
    assert root["effective"] == root["permitted"] == root["bounding"] == list(CAPABILITIES)
    other = default_spec(["sh"], rootfs="/r", hostname="box", user={"uid": 1, "gid": 0})["process"]["capabilities"]
    assert other["effective"] == other["permitted"] == []
    assert other["bounding"] == list(CAPABILITIES)


def test_calls_share_nothing() -> None:
    first = default_spec(["sh"], rootfs="/r", hostname="box")
    first["mounts"].clear()
    first["linux"]["maskedPaths"].clear()
    first["process"]["capabilities"]["bounding"].clear()
    second = default_spec(["sh"], rootfs="/r", hostname="box")
    assert second["mounts"]
    assert second["linux"]["maskedPaths"]
    assert second["process"]["capabilities"]["bounding"] == list(CAPABILITIES)
