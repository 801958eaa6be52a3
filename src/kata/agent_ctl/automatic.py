"""Values that a request gets by itself: what it needs to be sensible, unless -n is given.

    ids          those that the commands before have used, else random ones; of a process that of the last ExecProcess,
                 until it has been waited for
    spec         the bundle's, edited as the guest has to have it
    the rest     length of a read, data for the random source, the time, the size of the terminal, SIGKILL

Arguments of the command come after these, and win.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.message import Message

from kata.agent_ctl.request import ReadFile, apply
from kata.agent_ctl.script import Argument, Pair
from kata.errors import InvalidArgument
from kata.oci import convert, edit
from kata.oci.default import default_spec
from kata.oci.spec import Bundle, parse_spec
from kata.protocols import agent_pb2
from kata.runtime.agent_client.client import READ_SIZE
from kata.ttrpc.typed import Rpc

#: Kata's short names, and the fields that they stand for. They are remembered for the commands that follow.
SHORT = {"cid": "container_id", "sid": "sandbox_id"}
#: Kata's name for the spec, as `config.json` has it; the field OCI has it as the protocol does.
SPEC = "spec"

_SEED_BYTES = 64
_ID_BYTES = 32


class Guest(Protocol):
    """The requests that depend on where the agent runs, and what they take."""

    def create_sandbox(self, sandbox_id: str) -> agent_pb2.CreateSandboxRequest:
        """CreateSandbox."""

    def create_container(self, container_id: str, bundle: Bundle) -> agent_pb2.CreateContainerRequest:
        """CreateContainer. Raises KataError."""


class ForeignGuest:
    """An agent that others have started: it has what it has, and paths of the spec are its own."""

    def create_sandbox(self, sandbox_id: str) -> agent_pb2.CreateSandboxRequest:
        """Implement Guest: storages are for the caller to name."""
        return agent_pb2.CreateSandboxRequest(sandbox_id=sandbox_id)

    def create_container(self, container_id: str, bundle: Bundle) -> agent_pb2.CreateContainerRequest:
        """Implement Guest."""
        spec = edit.for_guest(bundle.spec, rootfs=str(bundle.rootfs), keep_seccomp=False)
        return agent_pb2.CreateContainerRequest(
            container_id=container_id, exec_id=container_id, OCI=convert.to_proto(spec)
        )


@dataclass(frozen=True)
class Values:
    """What commands hand on to those that follow.

    Attributes:
        automatic: whether requests get values by themselves.
        bundle: of the containers; None without one.
        container_id, sandbox_id: those used last.
        exec_id: of the last ExecProcess in that container, until it has been waited for; else "", the init process.
        terminal: rows and columns of the user's terminal, if there is one.
    """

    automatic: bool = True
    bundle: Bundle | None = None
    container_id: str = field(default_factory=lambda: secrets.token_hex(_ID_BYTES))
    sandbox_id: str = field(default_factory=lambda: secrets.token_hex(_ID_BYTES))
    exec_id: str = ""
    terminal: tuple[int, int] | None = None

    def using(self, name: str, value: str) -> Values:
        """The same with another container_id or sandbox_id."""
        changes: dict[str, Any] = {name: value}
        if name == "container_id" and value != self.container_id:
            changes["exec_id"] = ""
        return replace(self, **changes)


def random_id() -> str:
    """An id for a sandbox or a container: 64 hexadecimal digits, as engines make them."""
    return secrets.token_hex(_ID_BYTES)


def build(
    rpc: Rpc, arguments: Iterable[Argument], values: Values, guest: Guest, read: ReadFile
) -> tuple[Message, Values]:
    """Build a request.

    Args:
        rpc: what is called.
        arguments: of the command.
        values: handed on by the commands before.
        guest: where the agent runs.
        read: reads the files that arguments name.

    Returns:
        The request, and the values for the command that follows.

    Raises:
        InvalidArgument: an argument is wrong, or CreateContainer has no spec.
        KataError: a file cannot be read, or the bundle's container is impossible.
    """
    values, arguments = _take_short(rpc, arguments, values, read)
    request = _applied(rpc, arguments, values, guest, read)
    fields = request.DESCRIPTOR.fields_by_name
    for name in SHORT.values():
        if name in fields and (used := getattr(request, name)) not in ("", getattr(values, name)):
            values = values.using(name, used)
            # Once more: what is automatic may depend on it, such as paths in the guest.
            request = _applied(rpc, arguments, values, guest, read)
    exec_id = getattr(request, "exec_id", "")
    if rpc.name == "ExecProcess":
        values = replace(values, exec_id=exec_id)
    elif rpc.name == "WaitProcess" and exec_id == values.exec_id:
        values = replace(values, exec_id="")
    return request, values


def _applied(rpc: Rpc, arguments: Iterable[Argument], values: Values, guest: Guest, read: ReadFile) -> Message:
    request = _automatic(rpc, values, guest) if values.automatic else rpc.request()
    apply(request, arguments, rpc.name, read)
    if rpc.name == "CreateContainer" and values.automatic and not request.HasField("OCI"):
        raise InvalidArgument(
            "CreateContainer has no spec",
            hint="name a bundle (--bundle-dir) or a spec (spec=file:///config.json), or send it as it is (-n)",
        )
    return request


def _take_short(
    rpc: Rpc, arguments: Iterable[Argument], values: Values, read: ReadFile
) -> tuple[Values, list[Argument]]:
    """Take Kata's short names out: they are values for this command and those that follow."""
    rest: list[Argument] = []
    for argument in arguments:
        if isinstance(argument, Pair) and argument.key in SHORT:
            name = SHORT[argument.key]
            values = values.using(name, argument.value)
            if name in rpc.request.DESCRIPTOR.fields_by_name:
                rest.append(Pair(name, argument.value))
        elif isinstance(argument, Pair) and argument.key == SPEC:
            values = replace(values, bundle=_bundle_of(argument.value, values.bundle, read))
        else:
            rest.append(argument)
    return values, rest


def _bundle_of(text: str, bundle: Bundle | None, read: ReadFile) -> Bundle:
    """The bundle with another spec; without a bundle, its directory is the file's.

    Raises:
        InvalidArgument: it is no spec, or neither JSON nor a file.
    """
    if text.startswith("json://"):
        path, content = bundle.path if bundle else Path.cwd(), text[len("json://") :].encode()
    elif text.startswith("file://"):
        file = text[len("file://") :]
        path, content = bundle.path if bundle else Path(os.path.abspath(file)).parent, read(file)
    else:
        raise InvalidArgument(f"spec {text!r} is neither json://… nor file:///PATH")
    try:
        spec = parse_spec(content)
    except InvalidArgument as error:
        raise InvalidArgument(f"spec: {error.message}", hint=error.hint) from None
    return Bundle(path, spec, Path(os.path.realpath(path / spec["root"]["path"])))


def _automatic(rpc: Rpc, values: Values, guest: Guest) -> Message:
    name = rpc.name
    if name == "CreateSandbox":
        return guest.create_sandbox(values.sandbox_id)
    if name == "CreateContainer" and values.bundle:
        return guest.create_container(values.container_id, values.bundle)
    request: Any = rpc.request()
    fields = request.DESCRIPTOR.fields_by_name
    if "container_id" in fields:
        request.container_id = values.container_id
    if "exec_id" in fields and name != "CreateContainer":
        request.exec_id = values.exec_id
    if name == "ExecProcess":
        request.exec_id = f"exec-{secrets.token_hex(4)}"
        request.process.CopyFrom(_process(values.bundle))
    elif name in ("ReadStdout", "ReadStderr"):
        request.len = READ_SIZE
    elif name == "SignalProcess":
        request.signal = signal.SIGKILL
    elif name == "GetGuestDetails":
        request.mem_block_size = request.mem_hotplug_probe = True
    elif name == "ReseedRandomDev":
        request.data = os.urandom(_SEED_BYTES)
    elif name == "SetGuestDateTime":
        request.Sec, rest = divmod(time.time_ns(), 10**9)
        request.Usec = rest // 1000
    elif name == "TtyWinResize" and values.terminal:
        request.row, request.column = values.terminal
    return request  # type: ignore[no-any-return]


def _process(bundle: Bundle | None) -> Any:
    """A process for an exec: the bundle's, as in Kata, or a shell with what a container usually has."""
    process = bundle.spec["process"] if bundle else default_spec(("sh",), rootfs="/", hostname="")["process"]
    return convert.process_to_proto(edit.process_for_guest(process))
