"""Fields of a request by their paths: `OCI.Process.Args`, `OCI.Annotations[io.kubernetes.cri.container-name]`.

Paths are found in the protocol's descriptors when a policy is read, so that a wrong one is told then and not when a
request comes.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from kata.errors import InvalidArgument

_STEP = re.compile(r"([A-Za-z_]\w*)(?:\[([^\]]+)\])?(?:\.|$)")
_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
    FieldDescriptor.CPPTYPE_ENUM,
}

TEXT, NUMBER, FLAG, MESSAGE, OTHER = "text", "number", "true or false", "message", "other"


@dataclass(frozen=True)
class Shape:
    """What a value is.

    Attributes:
        kind: TEXT, NUMBER, FLAG, MESSAGE, or OTHER: bytes, which nothing can be compared with.
        many: whether it is a list of these, or the values of a map.
        message: the type of a message.
    """

    kind: str
    many: bool = False
    message: Descriptor | None = None

    @property
    def one(self) -> Shape:
        """The shape of an element."""
        return Shape(self.kind, False, self.message)


@dataclass(frozen=True)
class Field:
    """The way from a message to a value.

    Attributes:
        path: as it was written.
        steps: of each step the field's name, and the key in a map or None.
        shape: of what is there.
    """

    path: str
    steps: tuple[tuple[str, str | None], ...]
    shape: Shape

    def of(self, message: Any) -> Any:
        """The value: a message, a text, a number, a flag, or a list of these. What is absent is empty."""
        for name, key in self.steps:
            message = getattr(message, name)
            if key is not None:
                message = message.get(key, "")
        if self.shape.many:
            return list(message.values() if hasattr(message, "values") else message)
        return message


def find(message: Descriptor, path: str, where: str) -> Field:
    """The field of a path.

    Args:
        message: the type that the path begins in.
        path: names of fields with dots between them; of a map, "[KEY]" is the value of a key.
        where: for errors.

    Raises:
        InvalidArgument: there is no such field.
    """
    steps: list[tuple[str, str | None]] = []
    shape, position = Shape(MESSAGE, False, message), 0
    while position < len(path) or not steps:
        step = _STEP.match(path, position)
        if not step or (step[0].endswith(".") and step.end() == len(path)):
            raise InvalidArgument(f"{where}: invalid path {path[:200]!r}", hint='a path is like "OCI.Process.Args"')
        if shape.message is None or shape.many:
            raise InvalidArgument(f"{where}: {path[: step.start()].rstrip('.')} has no fields")
        name, key = step[1], step[2]
        field = shape.message.fields_by_name.get(name)
        if field is None:
            close = difflib.get_close_matches(name, shape.message.fields_by_name, 1)
            hint = f"did you mean {close[0]}?" if close else None
            raise InvalidArgument(f"{where}: {shape.message.name} has no field {name[:200]!r}", hint=hint)
        shape = _shape(field)
        if key is not None:
            if not _is_map(field) or shape.kind != TEXT:
                raise InvalidArgument(f"{where}: {name} is no map of texts, and has no [{key[:200]}]")
            shape = shape.one
        steps.append((name, key))
        position = step.end()
    return Field(path, tuple(steps), shape)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _shape(field: FieldDescriptor) -> Shape:
    if _is_map(field):
        entry: Any = field.message_type
        return Shape(_shape(entry.fields_by_name["value"]).kind, True)
    # How a field says so differs between versions of protobuf; its default does not.
    many = isinstance(field.default_value, list)
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return Shape(MESSAGE, many, field.message_type)
    if field.type == FieldDescriptor.TYPE_STRING:
        return Shape(TEXT, many)
    if field.cpp_type in _NUMBERS:
        return Shape(NUMBER, many)
    return Shape(FLAG if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL else OTHER, many)
