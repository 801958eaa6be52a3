"""What the agent is asked for: requests as it reads and checks them before it acts."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.message import DecodeError

from kata.agent import guestspec, network, storage
from kata.agent import routing as agent_routing
from kata.agent.config import parse as parse_parameters
from kata.agent.devices import pci_path, vfio
from kata.errors import InvalidArgument
from kata.linux.rtnetlink import Link
from kata.oci import cdi, convert
from kata.oci.ids import validate_id
from kata.protocols import agent_pb2, files, forward
from kata.ttrpc.envelope import decode_request, decode_response
from kata.ttrpc.wire import MalformedMessage
from tests.fuzz.target import target

_NAMESPACES = guestspec.Namespaces("/run/ipc", "/run/uts", "/run/net")
_LINKS = {"eth0": Link(2, "eth0", "", "02:00:00:00:00:01", 1500, 0)}


@target(DecodeError, InvalidArgument, share=8)
def agent_create_container(data: bytes) -> object:
    """CreateContainer: the spec for crun, devices, storages."""
    request = agent_pb2.CreateContainerRequest.FromString(data)
    spec: Any = convert.from_proto(request.OCI)
    guestspec.pids_of(spec)
    finished = guestspec.finish(
        spec, rootfs="/run/rootfs", cgroup="/kata/x", namespaces=_NAMESPACES, root_device=(254, 0)
    )
    json.dumps(guestspec.without_quota(finished))
    cdi.wanted(spec.get("annotations") or {})
    for device in request.devices:
        _refused(lambda device=device: vfio.parse_options(device.options))
        _refused(lambda device=device: pci_path.parse(device.id))
    for one in request.storages:
        for option in one.options:
            _refused(lambda option=option: storage.parse_size(option.partition("=")[2]))
    validate_id(request.container_id)
    return finished


@target(DecodeError, InvalidArgument)
def agent_network(data: bytes) -> object:
    """UpdateInterface and UpdateRoutes: addresses, routes."""
    if data[:1] < b"\x80":
        interface = agent_pb2.UpdateInterfaceRequest.FromString(data[1:]).interface
        return [network.parse_address(one, 2) for one in interface.IPAddresses]
    routes = agent_pb2.UpdateRoutesRequest.FromString(data[1:]).routes
    return [agent_routing._route(one, _LINKS) for one in routes.Routes]


@target(InvalidArgument)
def agent_words(data: bytes) -> object:
    """Command lines: the kernel's parameters, a copy's arguments, a forwarded port."""
    text = data.decode(errors="replace")
    _refused(lambda: parse_parameters(text))
    _refused(lambda: files.parse(text.split(" ")))
    return forward.parse_destination(data)


@target(MalformedMessage, share=16)
def ttrpc_envelopes(data: bytes) -> object:
    """The messages around each call."""
    try:
        decode_request(data)
    except MalformedMessage:
        pass
    return decode_response(data)


def _refused(call: Any) -> None:
    try:
        call()
    except InvalidArgument:
        return
