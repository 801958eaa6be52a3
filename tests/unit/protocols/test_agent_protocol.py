"""The agent's protocol is Kata's: names, types, numbers, RPCs, bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import DecodeError, Message

from kata.protocols import agent_pb2, csi_pb2, health_pb2, oci_pb2, types_pb2

_FILES: tuple[FileDescriptor, ...] = (
    agent_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    oci_pb2.DESCRIPTOR,
    csi_pb2.DESCRIPTOR,
    types_pb2.DESCRIPTOR,
)
_OURS_FROM = 1000
_SHORT = {
    FieldDescriptor.TYPE_STRING: "s",
    FieldDescriptor.TYPE_BOOL: "b",
    FieldDescriptor.TYPE_BYTES: "B",
    FieldDescriptor.TYPE_UINT32: "u32",
    FieldDescriptor.TYPE_UINT64: "u64",
    FieldDescriptor.TYPE_INT32: "i32",
    FieldDescriptor.TYPE_INT64: "i64",
}


def _type(field: FieldDescriptor) -> str:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return f"map<{_type(field.message_type.fields_by_name['value'])}>"
    named = field.message_type or field.enum_type
    text = named.full_name.removeprefix("grpc.") if named is not None else _SHORT[field.type]
    # What is repeated shows in its default everywhere; the attributes for it differ between versions of protobuf.
    if isinstance(field.default_value, list):
        return "[]" + text
    return f"?{text}" if field.containing_oneof is not None else text


def _described(message: Descriptor) -> str:
    fields = sorted(message.fields, key=lambda field: field.number)
    listed = ", ".join(f"{field.name} {_type(field)}={field.number}" for field in fields if field.number < _OURS_FROM)
    return f"{message.full_name.removeprefix('grpc.')}: {listed}".strip()


def test_every_message_has_the_fields_of_kata() -> None:
    table = Path(__file__).with_name("agent_messages.txt").read_text().splitlines()
    wanted = sorted(line for line in table if not line.startswith("#"))
    assert sorted(_described(m) for file in _FILES for m in file.message_types_by_name.values()) == wanted


def test_enumerations() -> None:
    assert types_pb2.IPFamily.items() == [("v4", 0), ("v6", 1)]
    assert types_pb2.FSGroupChangePolicy.items() == [("Always", 0), ("OnRootMismatch", 1)]
    assert csi_pb2.VolumeUsage.Unit.items() == [("UNKNOWN", 0), ("BYTES", 1), ("INODES", 2)]
    serving = health_pb2.HealthCheckResponse.ServingStatus
    assert serving.items() == [("UNKNOWN", 0), ("SERVING", 1), ("NOT_SERVING", 2)]


_EMPTY = "google.protobuf.Empty"
# RPC: request, response.
_RPCS = {
    **{
        name: (f"grpc.{name}Request", _EMPTY)
        for name in (
            *("CreateContainer", "StartContainer", "RemoveContainer", "ExecProcess", "SignalProcess"),
            *("UpdateContainer", "UpdateEphemeralMounts", "PauseContainer", "ResumeContainer"),
            *("RemoveStaleVirtiofsShareMounts", "CloseStdin", "TtyWinResize", "AddARPNeighbors", "StartTracing"),
            *("StopTracing", "CreateSandbox", "DestroySandbox", "OnlineCPUMem", "ReseedRandomDev"),
            *("MemHotplugByProbe", "SetGuestDateTime", "CopyFile", "AddSwap", "AddSwapPath", "ResizeVolume"),
            "SetPolicy",
        )
    },
    "WaitProcess": ("grpc.WaitProcessRequest", "grpc.WaitProcessResponse"),
    "StatsContainer": ("grpc.StatsContainerRequest", "grpc.StatsContainerResponse"),
    "GetDiagnosticData": ("grpc.GetDiagnosticDataRequest", "grpc.GetDiagnosticDataResponse"),
    "WriteStdin": ("grpc.WriteStreamRequest", "grpc.WriteStreamResponse"),
    "ReadStdout": ("grpc.ReadStreamRequest", "grpc.ReadStreamResponse"),
    "ReadStderr": ("grpc.ReadStreamRequest", "grpc.ReadStreamResponse"),
    "UpdateInterface": ("grpc.UpdateInterfaceRequest", "types.Interface"),
    "UpdateRoutes": ("grpc.UpdateRoutesRequest", "grpc.Routes"),
    "ListInterfaces": ("grpc.ListInterfacesRequest", "grpc.Interfaces"),
    "ListRoutes": ("grpc.ListRoutesRequest", "grpc.Routes"),
    "GetIPTables": ("grpc.GetIPTablesRequest", "grpc.GetIPTablesResponse"),
    "SetIPTables": ("grpc.SetIPTablesRequest", "grpc.SetIPTablesResponse"),
    "GetMetrics": ("grpc.GetMetricsRequest", "grpc.Metrics"),
    "MemAgentMemcgSet": ("grpc.MemAgentMemcgConfig", _EMPTY),
    "MemAgentCompactSet": ("grpc.MemAgentCompactConfig", _EMPTY),
    "GetGuestDetails": ("grpc.GuestDetailsRequest", "grpc.GuestDetailsResponse"),
    "GetOOMEvent": ("grpc.GetOOMEventRequest", "grpc.OOMEvent"),
    "GetVolumeStats": ("grpc.VolumeStatsRequest", "grpc.VolumeStatsResponse"),
}


def test_services() -> None:
    agent = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
    assert agent.full_name == "grpc.AgentService"
    assert {m.name: (m.input_type.full_name, m.output_type.full_name) for m in agent.methods} == _RPCS
    health = health_pb2.DESCRIPTOR.services_by_name["Health"]
    assert health.full_name == "grpc.Health"
    assert {m.name: (m.input_type.full_name, m.output_type.full_name) for m in health.methods} == {
        "Check": ("grpc.CheckRequest", "grpc.HealthCheckResponse"),
        "Version": ("grpc.CheckRequest", "grpc.VersionCheckResponse"),
    }


# Written down by hand from the wire format: tag = number << 3 | (0 varint, 2 length-delimited).
_GOLDEN: list[tuple[Message, str]] = [
    (agent_pb2.StartContainerRequest(container_id="ab"), "0a 02 6162"),
    (agent_pb2.ReseedRandomDevRequest(data=b"\xff"), "12 01 ff"),
    (agent_pb2.SignalProcessRequest(container_id="c", exec_id="e", signal=300), "0a 01 63  12 01 65  18 ac02"),
    (agent_pb2.WaitProcessResponse(status=-1), "08 ffffffffffffffffff01"),
    (agent_pb2.AddSwapRequest(PCIPath=[2, 3]), "0a 02 0203"),
    (agent_pb2.FSGroup(group_id=5, group_change_policy=types_pb2.OnRootMismatch), "10 05  18 01"),
    (agent_pb2.CreateContainerRequest(sandbox_pidns=True, stderr_port=1), "38 01  58 01"),
    (types_pb2.Interface(devicePath="02/03", mtu=1500), "20 dc0b  32 05 30322f3033"),
    (
        agent_pb2.CreateContainerRequest(
            container_id="c", OCI=oci_pb2.Spec(Version="1", Linux=oci_pb2.Linux(CgroupsPath="/p"))
        ),
        "0a 01 63  32 09  0a 01 31  42 04  2a 02 2f70",
    ),
    (oci_pb2.LinuxDeviceCgroup(Type="c", Major=-1, Access="m"), "12 01 63  18 ffffffffffffffffff01  2a 01 6d"),
    (oci_pb2.LinuxSyscall(Names=["a"], errnoret=0), "0a 01 61  18 00"),
    (oci_pb2.Spec(Annotations={"k": "v"}), "3a 06  0a 01 6b  12 01 76"),
    (agent_pb2.MemAgentMemcgConfig(disabled=False), "08 00"),
    # A field of this project's own: 1000 << 3 = 8000, as a varint c0 3e.
    (oci_pb2.User(Umask=0), "c03e 00"),
]


@pytest.mark.parametrize(("message", "wire"), _GOLDEN, ids=[type(message).__name__ for message, _ in _GOLDEN])
def test_bytes(message: Message, wire: str) -> None:
    assert message.SerializeToString() == bytes.fromhex(wire)
    assert type(message).FromString(bytes.fromhex(wire)) == message


def test_unknown_fields_are_skipped() -> None:
    # Field 99, varint 1, and field 98, two bytes: what a newer peer may send.
    newer = bytes.fromhex("0a 01 63  9806 01  9206 02 0000")
    assert agent_pb2.StartContainerRequest.FromString(newer).container_id == "c"


@pytest.mark.parametrize("wire", ["0a", "0a 05 61", "0a 01 ff", "ff", "0b"], ids=str)
def test_malformed_bytes_are_refused(wire: str) -> None:
    with pytest.raises(DecodeError):
        agent_pb2.StartContainerRequest.FromString(bytes.fromhex(wire))
