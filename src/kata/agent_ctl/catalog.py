"""The agent's RPCs, their fields and their types, read from the protocol's descriptors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from kata.errors import InvalidArgument
from kata.protocols import agent_pb2, health_pb2
from kata.ttrpc.typed import Rpc, rpcs

#: By name, in alphabetical order.
RPCS: dict[str, Rpc] = dict(
    sorted(
        (
            *rpcs(health_pb2.DESCRIPTOR.services_by_name["Health"]).items(),
            *rpcs(agent_pb2.DESCRIPTOR.services_by_name["AgentService"]).items(),
        )
    )
)

_MAX_CLOSE = 3
#: Messages within messages that `describe` shows: the spec has seven levels, which nobody wants to see at once.
_MAX_DEPTH = 1

_SCALARS = {
    FieldDescriptor.CPPTYPE_BOOL: "bool",
    FieldDescriptor.CPPTYPE_INT32: "int32",
    FieldDescriptor.CPPTYPE_INT64: "int64",
    FieldDescriptor.CPPTYPE_UINT32: "uint32",
    FieldDescriptor.CPPTYPE_UINT64: "uint64",
    FieldDescriptor.CPPTYPE_DOUBLE: "double",
    FieldDescriptor.CPPTYPE_FLOAT: "float",
}


def find_rpc(name: str) -> Rpc | None:
    """The RPC of that name, in upper or lower case; None if there is none."""
    return RPCS.get(name) or next((rpc for known, rpc in RPCS.items() if known.lower() == name.lower()), None)


def close_to(name: str, known: Iterable[str]) -> list[str]:
    """What may have been meant by an unknown name, the likeliest first."""
    by_lower = {text.lower(): text for text in known}
    return [by_lower[text] for text in difflib.get_close_matches(name.lower(), by_lower, _MAX_CLOSE, 0.5)]


def find_field(message: Descriptor, name: str, where: str) -> FieldDescriptor:
    """The field of that name: as in the .proto file, in any case, or as protobuf's JSON has it (lowerCamelCase).

    Args:
        message: its type.
        name: the field's.
        where: the message, for the error, e.g. "CreateSandbox" or "CreateSandbox.storages[0]".

    Raises:
        InvalidArgument: there is none.
    """
    if name in message.fields_by_name:
        return message.fields_by_name[name]
    for field in message.fields:
        if name.lower() in (field.name.lower(), field.json_name.lower()):
            return field
    close = close_to(name, message.fields_by_name)
    said = "close: " if close else "it has: " if message.fields else "it has no fields"
    shown = [message.fields_by_name[text] for text in close] or list(message.fields)
    raise InvalidArgument(
        f"{where} has no field {name!r}",
        hint=said + ", ".join(f"{field.name} ({type_of(field)})" for field in shown),
    )


def is_map(field: FieldDescriptor) -> bool:
    """Whether it is a map; maps are repeated fields, too."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def is_repeated(field: FieldDescriptor) -> bool:
    """Whether it has any number of values."""
    # The attributes for it differ between versions of protobuf; it shows in the default of all.
    return isinstance(field.default_value, list)


def entry_of(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor]:
    """Key and value of a map's entries."""
    entry: Any = field.message_type
    return entry.fields_by_name["key"], entry.fields_by_name["value"]


def type_of(field: FieldDescriptor) -> str:
    """A field's type in words, e.g. "repeated string", "map<string, uint64>", "enum IPFamily (v4, v6)"."""
    if is_map(field):
        key, value = entry_of(field)
        return f"map<{type_of(key)}, {type_of(value)}>"
    return f"repeated {_single(field)}" if is_repeated(field) else _single(field)


def _single(field: FieldDescriptor) -> str:
    if field.message_type is not None:
        return f"message {field.message_type.name}"
    if field.enum_type is not None:
        return f"enum {field.enum_type.name} ({', '.join(value.name for value in field.enum_type.values)})"
    if field.type == FieldDescriptor.TYPE_BYTES:
        return "bytes"
    return _SCALARS.get(field.cpp_type, "string")


def describe(rpc: Rpc) -> str:
    """What `help RPC` prints: its service, the fields of its request and of its answer."""
    request: Any = rpc.request.DESCRIPTOR
    answer: Any = rpc.response.DESCRIPTOR
    return "\n".join(
        (
            f"{rpc.name}  ({rpc.service.partition('.')[2]} service)",
            f"request {request.name}:",
            *(_fields(request, 0) if request.fields else ("  no fields",)),
            f"answer {answer.name}:",
            *(_fields(answer, 0) if answer.fields else ("  no fields",)),
            "",
        )
    )


def _fields(message: Descriptor, depth: int) -> Iterator[str]:
    for field in message.fields:
        yield f"{'  ' * (depth + 1)}{field.name}: {type_of(field)}"
        if field.message_type is not None and not is_map(field) and depth < _MAX_DEPTH:
            yield from _fields(field.message_type, depth + 1)
