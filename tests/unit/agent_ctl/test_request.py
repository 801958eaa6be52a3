from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from kata.agent_ctl import render
from kata.agent_ctl.catalog import RPCS, entry_of, is_map, is_repeated
from kata.agent_ctl.request import apply
from kata.agent_ctl.script import Call, Document, read_all
from kata.errors import InvalidArgument, NotFound
from kata.protocols import agent_pb2 as pb

FILES = {"/rules": b"*filter\n\xff", "/policy": b"package x\n", "/root": b'{"Path": "/r"}', "/broken": b"{"}


def read(path: str) -> bytes:
    if path not in FILES:
        raise NotFound(f"{path} does not exist")
    return FILES[path]


def build(line: str, start: Message | None = None) -> Any:
    (step,) = read_all([line])
    assert isinstance(step.action, Call)
    rpc = step.action.rpc
    return apply(rpc.request() if start is None else start, step.action.arguments, rpc.name, read)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("CreateSandbox hostname=pod Sandbox_ID=s", pb.CreateSandboxRequest(hostname="pod", sandbox_id="s")),
        ("CreateSandbox sandboxPidns=true", pb.CreateSandboxRequest(sandbox_pidns=True)),
        ('CreateSandbox dns=a dns="b c"', pb.CreateSandboxRequest(dns=["a", "b c"])),
        ("CreateSandbox dns=a dns[0]=b dns[1]=c", pb.CreateSandboxRequest(dns=["b", "c"])),
        ("CreateSandbox dns=a dns=json://[]", pb.CreateSandboxRequest()),
        (
            "CreateSandbox storages[0].driver=9p storages[0].options=a storages[0].options=b storages[1].driver=blk",
            pb.CreateSandboxRequest(storages=[pb.Storage(driver="9p", options=["a", "b"]), pb.Storage(driver="blk")]),
        ),
        (
            "CreateSandbox storages[0].fs_group.group_id=0x10",
            pb.CreateSandboxRequest(storages=[pb.Storage(fs_group=pb.FSGroup(group_id=16))]),
        ),
        ("AddSwap PCIPath=2 PCIPath=3", pb.AddSwapRequest(PCIPath=[2, 3])),
        ("SignalProcess signal=usr1", pb.SignalProcessRequest(signal=10)),
        ("SignalProcess signal=SIGTERM", pb.SignalProcessRequest(signal=15)),
        ("SignalProcess signal=9", pb.SignalProcessRequest(signal=9)),
        ("CopyFile file_mode=0o100644 uid=-1", pb.CopyFileRequest(file_mode=0o100644, uid=-1)),
        ("WriteStdin data='a\\n\\x00\\\\n'", pb.WriteStreamRequest(data=b"a\n\0\\n")),
        ("WriteStdin data=hex:00ff", pb.WriteStreamRequest(data=b"\0\xff")),
        ("SetIPTables data=file:///rules is_ipv6=1", pb.SetIPTablesRequest(is_ipv6=True, data=FILES["/rules"])),
        ("SetPolicy policy=file:///policy", pb.SetPolicyRequest(policy="package x\n")),
        ("MemAgentMemcgSet disabled=false", pb.MemAgentMemcgConfig(disabled=False)),
        ('GetGuestDetails json://{"mem_block_size": true}', pb.GuestDetailsRequest(mem_block_size=True)),
        ('WriteStdin json://{"data": "AP8="}', pb.WriteStreamRequest(data=b"\0\xff")),
        ('WriteStdin json://{"data": [0, 255]}', pb.WriteStreamRequest(data=b"\0\xff")),
        ('ResizeVolume json://{"size": "18446744073709551615"}', pb.ResizeVolumeRequest(size=(1 << 64) - 1)),
        ('CreateSandbox json://{"dns": ["a"], "dns": null}', pb.CreateSandboxRequest()),
    ],
)
def test_fields(line: str, wanted: Message) -> None:
    assert build(line) == wanted


def test_messages_maps_and_enumerations() -> None:
    request = build(
        'CreateContainer OCI.Annotations[io.example/a.b]=c OCI.Root=\'json://{"Path": "/x"}\' OCI.Process.User.UID=7'
    )
    assert dict(request.OCI.Annotations) == {"io.example/a.b": "c"}
    assert (request.OCI.Root.Path, request.OCI.Process.User.UID) == ("/x", 7)
    assert build("CreateContainer OCI.Root=file:///root").OCI.Root.Path == "/r"
    address = build("UpdateInterface interface.IPAddresses[0].family=V6").interface.IPAddresses[0]
    assert address.family == 1
    listed = 'json://{"interface": {"IPAddresses": [{"family": "v6"}, {"family": 1}], "sysctls": {"a": "b"}}}'
    interface = build(f"UpdateInterface {listed}").interface
    assert [address.family for address in interface.IPAddresses] == [1, 1]
    assert dict(interface.sysctls) == {"a": "b"}


def test_arguments_come_over_what_is_there() -> None:
    """The first value of a repeated field replaces those that were there, and later ones are added."""
    start = pb.ExecProcessRequest(container_id="x")
    start.process.Args.extend(["sh", "-c"])
    start.process.Env.append("A=b")
    request = build("ExecProcess process.Args=ls process.args=-l exec_id=e", start)
    assert list(request.process.Args) == ["ls", "-l"]
    assert (request.container_id, request.exec_id, list(request.process.Env)) == ("x", "e", ["A=b"])


@pytest.mark.parametrize(
    ("line", "said", "hint"),
    [
        ("StartContainer contaner_id=x", "StartContainer has no field 'contaner_id'", "close: container_id (string)"),
        ("DestroySandbox x=y", "DestroySandbox has no field 'x'", "it has no fields"),
        (
            "OnlineCPUMem zzz=1",
            "OnlineCPUMem has no field 'zzz'",
            "it has: wait (bool), nb_cpus (uint32), cpu_only (bool)",
        ),
        ("OnlineCPUMem nb_cpus=x", "OnlineCPUMem.nb_cpus: expected uint32, got 'x'", None),
        ("OnlineCPUMem nb_cpus=-1", "OnlineCPUMem.nb_cpus: expected uint32 (0 to 4294967295), got -1", None),
        ("OnlineCPUMem wait=yes", "OnlineCPUMem.wait: expected bool, got 'yes'", None),
        ("OnlineCPUMem wait[0]=true", "OnlineCPUMem.wait is not repeated: there is no [0]", None),
        ("OnlineCPUMem wait.x=true", "OnlineCPUMem.wait is of type bool and has no fields", None),
        ("OnlineCPUMem wait..x=true", "OnlineCPUMem: 'wait..x' is no path of a field", "such as storages[0].driver"),
        ("CreateSandbox storages.driver=x", "CreateSandbox.storages is repeated", "say which one, beginning with [0]"),
        (
            "CreateSandbox storages[1].driver=x",
            "CreateSandbox.storages has 0 values so far, [1] would not be the next",
            None,
        ),
        ("CreateSandbox storages[0].drivr=x", "CreateSandbox.storages[0] has no field 'drivr'", None),
        ("CreateContainer OCI.Annotations=x", "CreateContainer.OCI.Annotations is of type map<string, string>", None),
        ("CreateContainer OCI=x", "CreateContainer.OCI: expected message Spec, got 'x'", None),
        ("CreateContainer OCI=json://x", "CreateContainer.OCI is not JSON", None),
        ("CreateContainer OCI=file:///broken", "CreateContainer: /broken is not JSON", None),
        ("CreateContainer file:///broken", "CreateContainer: /broken is not JSON", None),
        ("SignalProcess signal=frob", "SignalProcess.signal: there is no signal 'frob'", None),
        ("WriteStdin data=hex:0", "WriteStdin.data: 'hex:0' is not hexadecimal", None),
        ("SetPolicy policy=file:///rules", "SetPolicy.policy: file:///rules is not text in UTF-8", None),
        (
            "UpdateInterface interface.IPAddresses[0].family=v5",
            "UpdateInterface.interface.IPAddresses[0].family: expected enum IPFamily (v4, v6), got 'v5'",
            None,
        ),
        (
            'CreateSandbox json://{"storages": [{"driver": 1}]}',
            "CreateSandbox.storages[0].driver: expected string, got 1",
            None,
        ),
        ('CreateSandbox json://{"dns": "x"}', "CreateSandbox.dns: expected repeated string, got 'x'", None),
        ('CreateSandbox json://{"storages": [1]}', "CreateSandbox.storages[0]: expected an object, got 1", None),
        ('OnlineCPUMem json://{"nb_cpus": true}', "OnlineCPUMem.nb_cpus: expected uint32, got True", None),
        ('OnlineCPUMem json://{"nb_cpus": 1.5}', "OnlineCPUMem.nb_cpus: expected uint32, got 1.5", None),
        ('OnlineCPUMem json://{"wait": 1}', "OnlineCPUMem.wait: expected bool, got 1", None),
        (
            'WriteStdin json://{"data": "?"}',
            "WriteStdin.data: expected bytes, in base64 or as a list of 0 to 255",
            None,
        ),
        ('WriteStdin json://{"data": [256]}', "WriteStdin.data: expected bytes, in base64", None),
    ],
)
def test_mistakes(line: str, said: str, hint: str | None) -> None:
    with pytest.raises(InvalidArgument) as caught:
        build(line)
    assert caught.value.message.startswith(said)
    assert "\n" not in caught.value.message
    assert hint is None or caught.value.hint == hint


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(NotFound, match="/nowhere does not exist"):
        build("CreateSandbox file:///nowhere")


def filled(message: Any, depth: int = 8) -> Any:
    """The message with a value in each field, as deep as it goes."""
    for field in message.DESCRIPTOR.fields:
        target = getattr(message, field.name)
        if is_map(field):
            value = entry_of(field)[1]
            if value.message_type is not None:
                filled(target["k.x/y"])
            else:
                target["k.x/y"] = value_of(value)
        elif field.message_type is not None and depth:
            filled(target.add() if is_repeated(field) else target, depth - 1)
        elif is_repeated(field):
            target.extend([value_of(field)] * 2)
        elif field.message_type is None:
            setattr(message, field.name, value_of(field))
    return message


def value_of(field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return 1
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b"\0\xff\n"
    if field.type == FieldDescriptor.TYPE_STRING:
        return 'a "b"\n\x1b\u00fc'
    return {
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_INT32: -(1 << 31),
        FieldDescriptor.CPPTYPE_INT64: -(1 << 63),
        FieldDescriptor.CPPTYPE_UINT32: (1 << 32) - 1,
        FieldDescriptor.CPPTYPE_UINT64: (1 << 64) - 1,
    }[field.cpp_type]


@pytest.mark.parametrize("name", RPCS)
def test_every_field_of_every_rpc_is_printed_and_read_again(name: str) -> None:
    for kind in (RPCS[name].request, RPCS[name].response):
        message = filled(kind())
        line = render.as_json(render.as_data(message))
        assert line.isascii()
        assert line.count("\n") == 1
        assert apply(kind(), [Document(json.loads(line))], name, read) == message
        text = render.as_yaml(message)
        assert text.isascii()
        assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", RPCS)
def test_every_field_of_every_request_can_be_set_by_its_path(name: str) -> None:
    message = filled(RPCS[name].request())
    words = list(words_of(message, ""))
    built = apply(RPCS[name].request(), read_all([" ".join([name, *words])])[0].action.arguments, name, read)  # type: ignore[union-attr]
    assert built == message


def words_of(message: Any, prefix: str) -> Any:
    descriptor: Descriptor = message.DESCRIPTOR
    for field in descriptor.fields:
        value = getattr(message, field.name)
        if is_map(field):
            yield from (f"{prefix}{field.name}[{key}]={quoted(entry_of(field)[1], value[key])}" for key in value)
        elif field.message_type is not None and is_repeated(field):
            for index, entry in enumerate(value):
                yield from words_of(entry, f"{prefix}{field.name}[{index}].")
        elif field.message_type is not None:
            if message.HasField(field.name):
                yield from words_of(value, f"{prefix}{field.name}.")
        else:
            for entry in value if is_repeated(field) else [value]:
                yield f"{prefix}{field.name}={quoted(field, entry)}"


def quoted(field: FieldDescriptor, value: Any) -> str:
    if isinstance(value, bytes):
        return f"hex:{value.hex()}"
    if isinstance(value, str):
        return "'" + value.replace("'", "'\\''") + "'"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
