"""What may follow at a prompt: commands, then fields with their types, then values. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor

from kata.agent_ctl.automatic import SHORT, SPEC
from kata.agent_ctl.catalog import RPCS, find_field, find_rpc, is_map, is_repeated, type_of
from kata.agent_ctl.script import ATTACH, BUILT_IN
from kata.errors import InvalidArgument


class Candidate(NamedTuple):
    """One way to go on.

    Attributes:
        text: what takes the place of the last `length` characters before the cursor.
        length: how many.
        about: a type or a description.
    """

    text: str
    length: int
    about: str


def complete(line: str) -> list[Candidate]:
    """The candidates for a line up to the cursor."""
    name, separator, rest = line.lstrip().partition(" ")
    if not separator:
        return list(_commands(name, BUILT_IN))
    if name == "help":
        return list(_commands(rest.lstrip(), BUILT_IN))
    rpc = RPCS["ReadStdout"] if name == ATTACH else find_rpc(name)
    if rpc is None:
        return []
    word = rest.rpartition(" ")[2]
    key, separator, value = word.partition("=")
    try:
        if separator:
            return list(_values(_last_field(rpc.request.DESCRIPTOR, key), value))
        return list(_fields(rpc.request.DESCRIPTOR, word))
    except InvalidArgument:
        return []  # a field that does not exist


def _commands(start: str, built_in: dict[str, str]) -> Iterator[Candidate]:
    for name, rpc in RPCS.items():
        if name.lower().startswith(start.lower()):
            yield Candidate(name, len(start), rpc.request.DESCRIPTOR.name)
    for name, what in built_in.items():
        if name.startswith(start):
            yield Candidate(name, len(start), what)


def _fields(message: Any, word: str) -> Iterator[Candidate]:
    path, dot, start = word.rpartition(".")
    if dot:
        message = _last_field(message, path).message_type or message
    for field in message.fields:
        if field.name.lower().startswith(start.lower()):
            yield Candidate(field.name + _after(field), len(start), type_of(field))
    if not dot:
        for short, name in SHORT.items():
            if short.startswith(start) and name in message.fields_by_name:
                yield Candidate(f"{short}=", len(start), name)
        if SPEC.startswith(start) and message.name == "CreateContainerRequest":
            yield Candidate(f"{SPEC}=file://", len(start), "OCI spec, such as config.json")


def _after(field: FieldDescriptor) -> str:
    """What follows the name of a field."""
    if is_map(field):
        return "["
    if field.message_type is not None:
        return "[0]." if is_repeated(field) else "."
    return "="


def _values(field: FieldDescriptor, start: str) -> Iterator[Candidate]:
    names: list[str] = []
    if field.enum_type is not None:
        names = [value.name for value in field.enum_type.values]
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        names = ["true", "false"]
    for name in names:
        if name.lower().startswith(start.lower()):
            yield Candidate(name, len(start), type_of(field))


def _last_field(message: Any, path: str) -> FieldDescriptor:
    """The field that a path leads to.

    Raises:
        InvalidArgument: there is none.
    """
    first, *rest = re.sub(r"\[[^\]]*\]?", "", path).split(".")
    field = find_field(message, first, message.name)
    for name in rest:
        if field.message_type is None:
            raise InvalidArgument(f"{field.name} has no fields")
        field = find_field(field.message_type, name, field.name)
    return field
