"""containerd's protocols: full names that go over the wire as text, RPCs, bytes."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from kata.protocols import status_pb2
from kata.protocols.containerd import (
    bootstrap_pb2,
    cgroups_v1_pb2,
    cgroups_v2_pb2,
    events_pb2,
    events_service_pb2,
    runtimeoptions_pb2,
    sandbox_pb2,
    task_pb2,
    task_v2_pb2,
    task_v3_pb2,
    types_pb2,
)

_TASK = (
    "State Create Start Delete Pids Pause Resume Checkpoint Kill Exec ResizePty CloseIO Update Wait Stats Connect "
    "Shutdown"
)


@pytest.mark.parametrize(
    ("service", "name", "methods"),
    [
        (task_v2_pb2.DESCRIPTOR.services_by_name["Task"], "containerd.task.v2.Task", _TASK),
        (task_v3_pb2.DESCRIPTOR.services_by_name["Task"], "containerd.task.v3.Task", _TASK),
        (
            events_service_pb2.DESCRIPTOR.services_by_name["Events"],
            "containerd.services.events.ttrpc.v1.Events",
            "Forward",
        ),
        (
            sandbox_pb2.DESCRIPTOR.services_by_name["Sandbox"],
            "containerd.runtime.sandbox.v1.Sandbox",
            "CreateSandbox StartSandbox Platform StopSandbox WaitSandbox SandboxStatus PingSandbox ShutdownSandbox "
            "SandboxMetrics",
        ),
    ],
    ids=["task v2", "task v3", "events", "sandbox"],
)
def test_services(service: ServiceDescriptor, name: str, methods: str) -> None:
    assert service.full_name == name
    assert {method.name for method in service.methods} == set(methods.split())


def test_both_task_services_have_the_same_messages() -> None:
    def shape(file: FileDescriptor) -> dict[str, list[tuple[str, int, int]]]:
        messages = file.message_types_by_name
        return {name: [(f.name, f.number, f.type) for f in message.fields] for name, message in messages.items()}

    assert shape(task_v2_pb2.DESCRIPTOR) == shape(task_v3_pb2.DESCRIPTOR)


# Clients look these up by name: the type URLs of Anys.
@pytest.mark.parametrize(
    ("message", "name"),
    [
        (events_pb2.TaskCreate, "containerd.events.TaskCreate"),
        (events_pb2.TaskStart, "containerd.events.TaskStart"),
        (events_pb2.TaskDelete, "containerd.events.TaskDelete"),
        (events_pb2.TaskExit, "containerd.events.TaskExit"),
        (events_pb2.TaskOOM, "containerd.events.TaskOOM"),
        (events_pb2.TaskExecAdded, "containerd.events.TaskExecAdded"),
        (events_pb2.TaskExecStarted, "containerd.events.TaskExecStarted"),
        (events_pb2.TaskPaused, "containerd.events.TaskPaused"),
        (events_pb2.TaskResumed, "containerd.events.TaskResumed"),
        (events_pb2.TaskCheckpointed, "containerd.events.TaskCheckpointed"),
        (runtimeoptions_pb2.Options, "runtimeoptions.v1.Options"),
        (cgroups_v1_pb2.Metrics, "io.containerd.cgroups.v1.Metrics"),
        (cgroups_v2_pb2.Metrics, "io.containerd.cgroups.v2.Metrics"),
    ],
)
def test_names(message: type[Message], name: str) -> None:
    assert message.DESCRIPTOR.full_name == name


_AT = Timestamp(seconds=1, nanos=2)
_AT_WIRE = "04 08 01 10 02"
# Written down by hand from the wire format: tag = number << 3 | (0 varint, 1 eight bytes, 2 length-delimited).
_GOLDEN: list[tuple[Message, str]] = [
    (task_v2_pb2.CreateTaskResponse(pid=5), "08 05"),
    (task_v2_pb2.DeleteResponse(pid=5, exit_status=137, exited_at=_AT), f"08 05  10 8901  1a {_AT_WIRE}"),
    (
        task_v2_pb2.CreateTaskRequest(id="a", rootfs=[types_pb2.Mount(type="bind", target="/", options=["ro"])]),
        "0a 01 61  1a 0d  0a 04 62696e64  1a 01 2f  22 02 726f",
    ),
    (task_v2_pb2.StateResponse(status=task_pb2.PAUSED, exec_id="e"), "20 04  5a 01 65"),
    (task_v3_pb2.ConnectResponse(shim_pid=1, task_pid=2, version="3"), "08 01  10 02  1a 01 33"),
    (
        events_pb2.TaskExit(container_id="c", id="e", pid=7, exit_status=1, exited_at=_AT),
        f"0a 01 63  12 01 65  18 07  20 01  2a {_AT_WIRE}",
    ),
    (
        events_service_pb2.ForwardRequest(
            envelope=events_service_pb2.Envelope(namespace="n", topic="/t", event=Any(type_url="u", value=b"v"))
        ),
        "0a 0f  12 01 6e  1a 02 2f74  22 06 0a 01 75 12 01 76",
    ),
    # What containerd 1.6 was seen to write for ConfigPath, inside of the Any.
    (
        runtimeoptions_pb2.Options(config_path="/etc/kata/configuration.toml"),
        "12 1c 2f6574632f6b6174612f636f6e66696775726174696f6e2e746f6d6c",
    ),
    (
        bootstrap_pb2.BootstrapParams(instance_id="i", log_level=bootstrap_pb2.LOG_LEVEL_DEBUG, socket_dir=""),
        "0a 01 69  18 fcffffffffffffffff01  4a 00",
    ),
    (types_pb2.RuntimeInfo(name="k", version=types_pb2.RuntimeVersion(version="1")), "0a 01 6b  12 03 0a 01 31"),
    (cgroups_v1_pb2.Metrics(memory_oom_control=cgroups_v1_pb2.MemoryOomControl(oom_kill=1)), "4a 02 18 01"),
    (cgroups_v1_pb2.MemoryStat(kernel_tcp=cgroups_v1_pb2.MemoryEntry(limit=1)), "a202 02 08 01"),
    (cgroups_v2_pb2.Metrics(memory=cgroups_v2_pb2.MemoryStat(usage=1)), "22 03 8002 01"),
    (cgroups_v2_pb2.PSIData(avg10=1.0), "09 000000000000f03f"),
    (status_pb2.Status(code=5, message="no"), "08 05  12 02 6e6f"),
]


@pytest.mark.parametrize(("message", "wire"), _GOLDEN, ids=[type(message).__name__ for message, _ in _GOLDEN])
def test_bytes(message: Message, wire: str) -> None:
    assert message.SerializeToString() == bytes.fromhex(wire)
    assert type(message).FromString(bytes.fromhex(wire)) == message
