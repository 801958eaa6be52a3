"""What `-info` tells of the runtime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from kata.errors import InvalidArgument
from kata.protocols.containerd import types_pb2
from kata.shim.features import features
from kata.shim.info import info


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "configuration.toml").touch()
    monkeypatch.setenv("KATA_CONF_FILE", str(tmp_path / "configuration.toml"))


def test_features_come_as_the_specification_has_them() -> None:
    told = types_pb2.RuntimeInfo.FromString(info(b""))
    assert told.features.type_url == "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    assert json.loads(told.features.value) == features(seccomp=True)
    assert not told.HasField("options"), "none were given"


def test_recursive_read_only_mounts_are_told_and_id_mapped_ones_denied() -> None:
    told = features(seccomp=True)
    assert {"ro", "rro", "rbind", "rslave"} <= set(told["mountOptions"])
    assert told["linux"]["mountExtensions"] == {"idmap": {"enabled": False}}


def test_options_of_another_kind_come_back() -> None:
    options = Any(type_url="containerd.runc.v1.Options", value=b"\x08\x01")
    assert types_pb2.RuntimeInfo.FromString(info(options.SerializeToString())).options == options


def test_what_is_no_message() -> None:
    with pytest.raises(InvalidArgument, match="standard input is not runtime options"):
        info(b"\xff")
