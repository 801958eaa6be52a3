"""What engines, people and the kernel give the host: specs, annotations, configuration, files of state, requests."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any, cast

import tomli_w

from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound, PermissionDenied, Unimplemented
from kata.linux import netlink as wire
from kata.linux import routing, rtnetlink
from kata.linux.netlink import Message, Netlink
from kata.management.server import Request, Response, serve
from kata.oci import cdi, convert, edit, left_out
from kata.oci.annotations import classify
from kata.oci.default import default_spec
from kata.oci.spec import Spec, parse_process, parse_resources, parse_spec
from kata.osbuilder import recipe as recipes
from kata.policy import document
from kata.protocols import agent_pb2
from kata.runtime.config.annotations import apply_annotations
from kata.runtime.config.loader import load
from kata.runtime.config.settings import ANNOTATION_PREFIX, Config
from kata.runtime.hypervisor.template.store import list_templates
from kata.runtime.hypervisor.template.template import MANIFEST, MEMORY, STATE
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.names import find as find_name
from kata.runtime.network import cni
from kata.runtime.resources.limits import sandbox_budget
from kata.runtime.resources.sizing import Size
from kata.runtime.sandbox import requests
from kata.runtime.sandbox.origin import container_name, origin_of
from kata.runtime.storage import direct_volume
from kata.shim.bootstrap import read_bootstrap, runtime_config
from tests.fuzz.target import scratch, target

_ID = "box"
_HOST = Size(4, 8192)


def _toml(data: bytes) -> bytes:
    """An input as TOML, if it is a document that can be written so; else as it is."""
    try:
        found = json.loads(data)
        return tomli_w.dumps(found).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return data


@target(InvalidArgument, is_document=True, share=8)
def oci_spec(data: bytes) -> object:
    """A container's config.json: read, classified, sized, edited for the guest, and sent."""
    spec = parse_spec(data)
    annotations = spec.get("annotations") or {}
    classify(annotations, _ID)
    origin_of("k8s.io", annotations)
    container_name(annotations)
    cdi.wanted(annotations)
    requests.refuse_host_network(_ID, spec)
    requests.hugepage_limits(spec)
    sandbox_budget(_ID, spec, Config(), _HOST)
    requests.create_sandbox_request(_ID, spec, Config(), 0).SerializeToString()
    edited = edit.for_guest(spec, rootfs="/run/rootfs", keep_seccomp=True)
    if edit.shares_pids(spec):
        edited = edit.join_pids(edited, _ID)
    left_out.of_spec(spec)
    sent = convert.to_proto(edited).SerializeToString()
    arrived = convert.from_proto(type(convert.to_proto(edited)).FromString(sent))
    assert convert.to_proto(arrived).SerializeToString(deterministic=True) is not None
    return json.dumps(arrived)


@target(InvalidArgument, is_document=True)
def oci_process(data: bytes) -> object:
    """A further process of a container, and new limits."""
    try:
        limits = edit.update_for_guest(parse_resources(data))
        convert.resources_to_proto(limits)
    except InvalidArgument:
        pass
    return convert.process_to_proto(edit.process_for_guest(parse_process(data)))


@target(FailedPrecondition, InvalidArgument, is_document=True, share=1)
def cdi_specification(data: bytes) -> object:
    """A specification of devices (CDI), in JSON and in YAML."""
    directory = scratch("cdi")
    spec = cast(
        "Spec",
        {**default_spec(["true"], rootfs="/r", hostname="h"), "annotations": {"cdi.k8s.io/x": "vendor.com/gpu=one"}},
    )
    results: list[KataError] = []
    for name in ("a.json", "a.yaml"):
        (directory / name).write_bytes(data)
        try:
            edits = cdi.find(["vendor.com/gpu=one", "vendor.com/gpu=two"], [str(directory)])
            json.dumps(cdi.apply(spec, edits or ()), default=str)
            cdi.by_host(spec, [str(directory)])
        except (FailedPrecondition, InvalidArgument) as error:
            results.append(error)
        finally:
            (directory / name).unlink()
    if results:
        raise results[0]
    return None


@target(InvalidArgument, is_document=True)
def configuration(data: bytes) -> object:
    """The configuration."""
    return load(body=_toml(data), environ={}).config


@target(PermissionDenied, InvalidArgument, Unimplemented, is_document=True)
def pod_annotations(data: bytes) -> object:
    """A pod's annotations, all of which are allowed."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = {data[:20].decode(errors="replace"): data[20:].decode(errors="replace")}
    if not isinstance(found, dict):
        return None
    config = load(body=b'[hypervisor.qemu]\nenable_annotations = [".*"]\n', environ={}).config
    for prefix in ("", ANNOTATION_PREFIX):
        # A spec has no halves of characters any more (`kata.oci.conform`).
        given = {prefix + key: str(value).encode(errors="replace").decode() for key, value in found.items()}
        apply_annotations(config, given)
        classify(given, _ID)
    return config


@target(InvalidArgument, is_document=True)
def policy(data: bytes) -> object:
    """A policy, and its answer to requests."""
    try:
        text = _toml(data).decode()
    except UnicodeDecodeError:
        return None
    parsed = document.parse(text)
    for request in _REQUESTS:
        told = parsed.blocked(request.DESCRIPTOR.name, request)
        assert told.isprintable()
        assert len(told) < 4096
    return parsed


_REQUESTS: tuple[Any, ...] = (
    agent_pb2.ExecProcessRequest(container_id="web", exec_id="e", process={"Args": ["date", "-u"], "Env": ["A=1"]}),
    agent_pb2.CreateContainerRequest(container_id="web", OCI={"Annotations": {"a": "b"}}),
    agent_pb2.SignalProcessRequest(container_id="web", signal=9),
)


@target(InvalidArgument, NotFound, is_document=True)
def recipe(data: bytes) -> object:
    """A recipe of a guest image."""
    path = scratch("recipe") / "r.toml"
    path.write_bytes(_toml(data))
    return recipes.load(str(path)).digest


@target(InvalidArgument, is_document=True)
def direct_volume_record(data: bytes) -> object:
    """The record of a direct volume, which a driver of storage writes."""
    return direct_volume.parse("/var/lib/volume", data)


@target(InvalidArgument, is_document=True)
def cni_documents(data: bytes) -> object:
    """A network's configuration (CNI), and what a plugin says of its result."""
    try:
        cni.result(data.decode(errors="replace"))
    except ValueError:
        pass
    return cni.parse(data)


@target(InvalidArgument, share=8)
def bootstrap_parameters(data: bytes) -> object:
    """What containerd writes to the standard input of a new shim."""
    return runtime_config(read_bootstrap(data, _ID).options)


@target(is_document=True)
def template_manifest(data: bytes) -> object:
    """The manifest of a template, among those that are listed."""
    root = scratch("templates")
    directory = root / "abc"
    if not directory.exists():
        directory.mkdir()
        (directory / MEMORY).write_bytes(b"memory")
        (directory / STATE).write_bytes(b"state")
    (directory / MANIFEST).write_bytes(data)
    (listed,) = list_templates(root)
    assert listed.problem or isinstance(listed.vm, dict)
    assert "\n" not in listed.problem
    return listed


@target(InvalidArgument, share=8)
def ledger(data: bytes) -> object:
    """A ledger, and the names of state directories."""
    fd = os.memfd_create("ledger")
    os.write(fd, data)
    opened = Ledger.adopt("/nonexistent", fd)
    try:
        held = opened.held
        for kind, value in held:
            assert "\n" not in value
            assert "\t" not in value
            opened.drop(kind, value)
        assert not opened.held
    finally:
        opened.close()
    return find_name(data[:100].decode(errors="replace"), "/nonexistent")


class _Answers(Netlink):
    """A socket whose kernel answers with an input, whatever it is asked."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def _send(self, kind: int, body: bytes, flags: int) -> int:
        return 0

    def _answers(self, sequence: int) -> Iterator[Message]:
        return (message for message, _ in wire.unpack(self._data))


@target(share=8)
def netlink(data: bytes) -> object:
    """Answers of the kernel about interfaces, addresses, neighbours, routes and rules."""
    answers = _Answers(data)
    for ask in (rtnetlink.links, rtnetlink.addresses, rtnetlink.neighbours, routing.routes, routing.rules):
        try:
            ask(answers)
        except OSError:
            continue
    return None


# ---------------------------------------------------------------------------------------------------------- management


class _Transport(asyncio.Transport):
    """Takes what the server writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self._closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True

    abort = close


async def _echo(request: Request) -> Response:
    return Response.of({"fields": request.fields(), "query": dict(request.query)})


async def _served(data: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport = _Transport()
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    protocol.connection_lost(None)
    await serve(reader, writer, {"/": {"GET": _echo, "PUT": _echo}, "/stop": {"POST": _echo}})
    return bytes(transport.written)


_loops: list[asyncio.AbstractEventLoop] = []


@target(share=2)
def management(data: bytes) -> object:
    """Requests to the management socket."""
    if not _loops:
        _loops.append(asyncio.new_event_loop())
    answer = _loops[0].run_until_complete(_served(data))
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert not answer.startswith(b"HTTP/1.1 500"), answer
    assert len(answer) < 64 * len(data) + 65536
    return answer
