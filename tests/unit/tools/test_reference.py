"""The pages of the reference that are generated: fresh, and made of what the code has."""

from __future__ import annotations

import pytest

from kata.protocols import agent_pb2
from kata.protocols.containerd import task_v2_pb2
from tools.reference import PAGES, REFERENCE, Field, Rpc, fields, rpcs

PROTO = """\
service Box {
  // what is in it
  rpc List(ListRequest) returns (ListResponse);

  // what comes and goes
  rpc Put(PutRequest) returns (google.protobuf.Empty);
  rpc Watch(PutRequest) returns (stream ListResponse);
}

message PutRequest {
  string name = 1;  // of the thing
  enum Kind {
    A = 0;
  }
  repeated bytes parts = 2;
  map<string, uint64> sizes = 3;
}

message ListRequest {}
"""


@pytest.mark.parametrize("name", PAGES)
def test_it_is_fresh(name: str) -> None:
    assert (REFERENCE / name).read_text(encoding="utf-8") == PAGES[name](), "run: make docs"


def test_every_call_of_the_protocols_is_there() -> None:
    page = PAGES["rpcs.md"]()
    agent, task = agent_pb2.DESCRIPTOR.services_by_name["AgentService"], task_v2_pb2.DESCRIPTOR.services_by_name["Task"]
    for method in (*agent.methods, *task.methods):
        assert f"\n### {method.name}\n\n`{method.input_type.name}` → `" in page


def test_what_is_not_answered_is_said() -> None:
    page = PAGES["rpcs.md"]()
    assert "`MemHotplugByProbeRequest` → `google.protobuf.Empty` *Not answered.*" in page
    assert "`CreateSandboxRequest` → `google.protobuf.Empty`\n" in page
    assert "`StartTracingRequest` → `google.protobuf.Empty`\n" in page


def test_how_a_proto_file_is_read() -> None:
    assert rpcs(PROTO, "Box") == [
        Rpc("List", "what is in it", "ListRequest", "ListResponse", False),
        Rpc("Put", "what comes and goes", "PutRequest", "google.protobuf.Empty", False),
        Rpc("Watch", "what comes and goes", "PutRequest", "ListResponse", True),
    ]
    assert fields(PROTO, "PutRequest") == [
        Field("string", "name", "of the thing"),
        Field("repeated bytes", "parts", ""),
        Field("map<string, uint64>", "sizes", ""),
    ]
    assert fields(PROTO, "ListRequest") == []
    with pytest.raises(ValueError, match="no message Nothing"):
        fields(PROTO, "Nothing")
