"""The hand-written decoder of `start`'s standard input, held against google.protobuf."""

from __future__ import annotations

import pytest
from google.protobuf import any_pb2
from hypothesis import given
from hypothesis import strategies as st

from kata.errors import InvalidArgument
from kata.protocols.containerd import bootstrap_pb2, runtimeoptions_pb2
from kata.shim.bootstrap import read_bootstrap

OPTIONS = any_pb2.Any(
    type_url="runtimeoptions.v1.Options",
    value=runtimeoptions_pb2.Options(config_path="/etc/kata-containers/configuration.toml").SerializeToString(),
)


def parameters(**fields: object) -> bootstrap_pb2.BootstrapParams:
    return bootstrap_pb2.BootstrapParams(instance_id="box", namespace="n", **fields)  # type: ignore[arg-type]


def test_nothing_is_no_options() -> None:
    found = read_bootstrap(b"", "box")
    assert (found.options, found.socket_dir) == (b"", "")


def test_containerd_1_sends_an_any() -> None:
    found = read_bootstrap(OPTIONS.SerializeToString(), "box")
    assert any_pb2.Any.FromString(found.options) == OPTIONS
    assert found.socket_dir == ""


def test_containerd_2_sends_parameters() -> None:
    message = parameters(socket_dir="/run/elsewhere")
    message.extensions.add().value.CopyFrom(OPTIONS)
    found = read_bootstrap(message.SerializeToString(), "box")
    assert any_pb2.Any.FromString(found.options) == OPTIONS
    assert found.socket_dir == "/run/elsewhere"


def test_parameters_without_options() -> None:
    found = read_bootstrap(parameters().SerializeToString(), "box")
    assert (found.options, found.socket_dir) == (b"", "")


def test_numbers_among_the_fields_are_passed_over() -> None:
    every_wire_type = b"\x80\x01\x96\x01" + b"\x89\x01" + b"8bytes.." + b"\x95\x01" + b"four"
    found = read_bootstrap(every_wire_type + parameters(socket_dir="/d").SerializeToString(), "box")
    assert found.socket_dir == "/d"


@pytest.mark.parametrize(
    "data",
    [
        OPTIONS.SerializeToString()[:-1],
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x0b",
        b"\x09short",
        b"\x0dxyz",
        b"configuration_path = 1",
        b"\xff" * 30,
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="neither runtime options nor bootstrap parameters"):
        read_bootstrap(data, "box")


@given(st.binary(max_size=200))
def test_no_input_does_anything_but_decode_or_refuse(data: bytes) -> None:
    try:
        read_bootstrap(data, "box")
    except InvalidArgument:
        pass


@given(st.text(max_size=40), st.binary(max_size=300), st.text(max_size=20))
def test_agrees_with_the_real_library(type_url: str, value: bytes, socket_dir: str) -> None:
    options = any_pb2.Any(type_url=type_url, value=value)
    message = parameters(socket_dir=socket_dir)
    message.extensions.add().value.CopyFrom(options)
    found = read_bootstrap(message.SerializeToString(), "box")
    assert found.options == options.SerializeToString()
    assert found.socket_dir == socket_dir
