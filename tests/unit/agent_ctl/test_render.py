from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml
from google.protobuf.message import Message

from kata.agent_ctl.render import as_data, as_yaml
from kata.errors import ResourceExhausted
from kata.protocols import agent_pb2 as pb
from kata.protocols import health_pb2, types_pb2


def test_what_is_zero_is_shown_and_what_is_absent_is_not() -> None:
    assert as_yaml(pb.WaitProcessResponse()) == "status: 0\n"
    assert as_data(pb.CpuStats()) == {}
    assert as_data(pb.MemAgentMemcgConfig(disabled=False)) == {"disabled": False}
    assert as_data(pb.StatsContainerResponse()) == {"network_stats": []}
    assert as_yaml(pb.DestroySandboxRequest()) == ""


def test_enumerations_by_name_unless_they_are_unknown() -> None:
    assert as_yaml(health_pb2.HealthCheckResponse(status="SERVING")) == "status: SERVING\n"
    assert as_data(health_pb2.HealthCheckResponse.FromString(b"\x08\x07")) == {"status": 7}


def test_lines_stay_lines() -> None:
    assert as_yaml(pb.Metrics(metrics="a 1\nb 2\n")) == "metrics: |\n  a 1\n  b 2\n"
    assert as_yaml(pb.GetIPTablesResponse(data=b"*filter\nCOMMIT\n")) == "data: |\n  *filter\n  COMMIT\n"
    assert as_yaml(pb.GetIPTablesResponse(data=b"\xff\n")) == "data: hex:ff0a\n"


def test_a_hostile_guest_cannot_write_to_the_terminal() -> None:
    hostile = "\x1b]0;x\x07\n\x9b31m\u202e\r\x00 status: fake"
    text = as_yaml(pb.Metrics(metrics=hostile))
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    assert yaml.safe_load(text) == {"metrics": hostile}


@pytest.mark.parametrize("show", [as_yaml, as_data])
def test_a_hostile_guest_cannot_take_minutes_and_gigabytes(show: Callable[[Message], object]) -> None:
    # Two bytes each.
    interfaces = pb.Interfaces(Interfaces=[types_pb2.Interface()] * 100_000)
    with pytest.raises(ResourceExhausted, match="more than 100000 values"):
        show(interfaces)
    with pytest.raises(ResourceExhausted, match="more than 100000 values"):
        show(pb.CpuUsage(percpu_usage=[1] * 100_001))
