r"""From arguments to a request: fields by their paths, texts and JSON to the fields' types.

    hostname=pod                            a field
    storages[0].driver=9p                   a field of a message; of a repeated message by its index, new ones in order
    dns=192.0.2.1 dns=192.0.2.2             several values of a repeated field
    OCI.Annotations[io.example/key]=value   an entry of a map
    OCI.Root='json://{"Path": "/x"}'        any field, as JSON
    policy=file:///tmp/policy.toml          a text or bytes: the content of a file; a message: its JSON in a file
    data=hex:0a0b   data="ls\n"              bytes

JSON is as protobuf's, with bytes in base64, or as numbers, as Kata's agent-ctl has them. Names may be in any case.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import signal
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kata.agent_ctl.catalog import entry_of, find_field, is_map, is_repeated, type_of
from kata.agent_ctl.script import Argument, Document, File
from kata.errors import InvalidArgument

#: Reads a file that an argument names; raises KataError.
ReadFile = Callable[[str], bytes]

_FILE, _JSON = "file://", "json://"
_STEP = re.compile(r"([^.\[\]]+)|\[([^\]]*)\]")
_PATH = re.compile(r"[^.\[\]]+(?:\[[^\]]*\])?(?:\.[^.\[\]]+(?:\[[^\]]*\])?)*")
_ESCAPE = re.compile(rb"\\(n|r|t|\\|x[0-9a-fA-F]{2})")
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\\": b"\\"}
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}

_Message = TypeVar("_Message", bound=Message)


def apply(message: _Message, arguments: Iterable[Argument], name: str, read: ReadFile) -> _Message:
    """Set fields of a message, in the order of the arguments. The first value of a repeated field replaces all.

    Args:
        message: is changed, and returned.
        arguments: what to set.
        name: of the RPC, for errors.
        read: reads files.

    Raises:
        InvalidArgument: there is no such field, or a value is not of its type.
        KataError: a file cannot be read.
    """
    return _Setter(name, read).apply(message, arguments)


class _Setter:
    """One command's."""

    def __init__(self, name: str, read: ReadFile) -> None:
        self._name = name
        self._read = read
        self._replaced: set[str] = set()

    def apply(self, message: _Message, arguments: Iterable[Argument]) -> _Message:
        for argument in arguments:
            if isinstance(argument, Document):
                self._set_fields(message, argument.value, self._name)
            elif isinstance(argument, File):
                self._set_fields(message, self._load(argument.path), self._name)
            else:
                self._set_pair(message, argument.key, argument.value)
        return message

    # ----------------------------------------------------------------------------------------------------- key=value

    def _set_pair(self, message: Any, key: str, text: str) -> None:
        if not _PATH.fullmatch(key):
            raise InvalidArgument(f"{self._name}: {key!r} is no path of a field", hint="such as storages[0].driver")
        names = [match[0] for match in _STEP.finditer(key)]
        where = self._name
        while names:
            field = find_field(message.DESCRIPTOR, names.pop(0), where)
            where = f"{where}.{field.name}"
            index = names.pop(0)[1:-1] if names and names[0].startswith("[") else None
            if is_map(field):
                self._set_entry(message, field, index, names, text, where)
                return
            if index is not None and not is_repeated(field):
                raise InvalidArgument(f"{where} is not repeated: there is no [{index}]")
            if not names:
                if key.lower() not in self._replaced and index is None:
                    self._replaced.add(key.lower())
                    message.ClearField(field.name)
                self._set_leaf(message, field, index, text, where)
                return
            if field.message_type is None:
                raise InvalidArgument(f"{where} is of type {type_of(field)} and has no fields")
            if not is_repeated(field):
                message = getattr(message, field.name)
                message.SetInParent()
                continue
            message = self._element(getattr(message, field.name), index, where)
            where = f"{where}[{index}]"

    def _set_entry(
        self, message: Any, field: FieldDescriptor, key: str | None, rest: list[str], text: str, where: str
    ) -> None:
        if key is None or rest:
            raise InvalidArgument(f"{where} is of type {type_of(field)}", hint=f"use {field.name}[KEY]=VALUE")
        entry_key, value = entry_of(field)
        found = self._scalar(value, text, f"{where}[{key}]")
        getattr(message, field.name)[self._scalar(entry_key, key, f"the key of {where}")] = found

    def _set_leaf(self, message: Any, field: FieldDescriptor, index: str | None, text: str, where: str) -> None:
        if field.message_type is not None or text.startswith(_JSON):
            self._set_field(message, field, self._document(field, text, where), where)
        elif not is_repeated(field):
            setattr(message, field.name, self._scalar(field, text, where))
        elif index is None:
            getattr(message, field.name).append(self._scalar(field, text, where))
        else:
            values = getattr(message, field.name)
            number = self._index(values, index, where)
            values[number : number + 1] = [self._scalar(field, text, where)]

    def _element(self, values: Any, index: str | None, where: str) -> Any:
        if index is None:
            raise InvalidArgument(f"{where} is repeated", hint="say which one, beginning with [0]")
        number = self._index(values, index, where)
        return values.add() if number == len(values) else values[number]

    @staticmethod
    def _index(values: Any, index: str, where: str) -> int:
        if not (index.isascii() and index.isdecimal() and len(index) < 10 and int(index) <= len(values)):
            raise InvalidArgument(f"{where} has {len(values)} values so far, [{index}] would not be the next")
        return int(index)

    def _document(self, field: FieldDescriptor, text: str, where: str) -> Any:
        if text.startswith(_FILE):
            return self._load(text[len(_FILE) :])
        if not text.startswith(_JSON):
            raise InvalidArgument(
                f"{where}: expected {type_of(field)}, got {_short(text)}",
                hint=f"set its fields ({field.name}.…=), or use json://… or file:///PATH",
            )
        try:
            return json.loads(text[len(_JSON) :])
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"{where} is not JSON: {' '.join(str(error).split())}") from None

    def _scalar(self, field: FieldDescriptor, text: str, where: str) -> Any:
        """A text as the field's type.

        Raises:
            InvalidArgument: it is not.
        """  # noqa: DOC501 - `_wrong` makes one
        if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            content = self._read(text[len(_FILE) :]) if text.startswith(_FILE) else None
            if field.type == FieldDescriptor.TYPE_BYTES:
                return _to_bytes(text, where) if content is None else content
            try:
                return text if content is None else content.decode()
            except UnicodeDecodeError:
                raise InvalidArgument(f"{where}: {text} is not text in UTF-8") from None
        if field.enum_type is not None:
            return _enum(field, text, where)
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            if (value := {"true": True, "1": True, "false": False, "0": False}.get(text.lower())) is None:
                raise _wrong(field, text, where)
            return value
        if field.name == "signal" and not text.isdecimal():
            return _signal_number(text, where)
        try:
            return _in_range(field, int(text, 0), where)
        except ValueError:
            raise _wrong(field, text, where) from None

    # ---------------------------------------------------------------------------------------------------------- JSON

    def _load(self, path: str) -> Any:
        try:
            return json.loads(self._read(path))
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"{self._name}: {path} is not JSON: {' '.join(str(error).split())}") from None

    def _set_fields(self, message: Any, document: Any, where: str) -> None:
        if not isinstance(document, dict):
            raise InvalidArgument(f"{where}: expected an object, got {_short(document)}")
        for name, value in document.items():
            field = find_field(message.DESCRIPTOR, name, where)
            self._set_field(message, field, value, f"{where}.{field.name}")

    def _set_field(self, message: Any, field: FieldDescriptor, value: Any, where: str) -> None:
        message.ClearField(field.name)
        if value is None:
            return
        target = getattr(message, field.name)
        if is_map(field):
            if not isinstance(value, dict):
                raise _wrong(field, value, where)
            key_field, value_field = entry_of(field)
            for key, entry in value.items():
                place = f"{where}[{key}]"
                name = self._scalar(key_field, key, place)
                if value_field.message_type is not None:
                    self._set_fields(target[name], entry, place)
                else:
                    target[name] = self._from_json(value_field, entry, place)
        elif is_repeated(field):
            if not isinstance(value, list):
                raise _wrong(field, value, where)
            for index, entry in enumerate(value):
                if field.message_type is not None:
                    self._set_fields(target.add(), entry, f"{where}[{index}]")
                else:
                    target.append(self._from_json(field, entry, f"{where}[{index}]"))
        elif field.message_type is not None:
            target.SetInParent()
            self._set_fields(target, value, where)
        else:
            setattr(message, field.name, self._from_json(field, value, where))

    def _from_json(self, field: FieldDescriptor, value: Any, where: str) -> Any:
        """A value of a JSON document as the field's type.

        Raises:
            InvalidArgument: it is not.
        """  # noqa: DOC501 - `_wrong` makes one
        if field.type == FieldDescriptor.TYPE_BYTES:
            return _bytes_from_json(field, value, where)
        if field.type == FieldDescriptor.TYPE_STRING:
            if not isinstance(value, str):
                raise _wrong(field, value, where)
            return value
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            if not isinstance(value, bool):
                raise _wrong(field, value, where)
            return value
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise _wrong(field, value, where)
        # As protobuf's JSON, which has numbers of 64 bits in quotes.
        return self._scalar(field, str(value), where)


def _wrong(field: FieldDescriptor, value: Any, where: str) -> InvalidArgument:
    return InvalidArgument(f"{where}: expected {type_of(field)}, got {_short(value)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _in_range(field: FieldDescriptor, number: int, where: str) -> int:
    low, high = _BITS[field.cpp_type]
    if not low <= number <= high:
        raise InvalidArgument(f"{where}: expected {type_of(field)} ({low} to {high}), got {_short(number)}")
    return number


def _enum(field: FieldDescriptor, text: str, where: str) -> int:
    values: Any = field.enum_type
    for value in values.values:
        if text.lower() == value.name.lower() or text == str(value.number):
            return int(value.number)
    raise _wrong(field, text, where)


def _to_bytes(text: str, where: str) -> bytes:
    if text.startswith("hex:"):
        try:
            return bytes.fromhex(text[len("hex:") :])
        except ValueError:
            raise InvalidArgument(f"{where}: {text!r} is not hexadecimal") from None
    return _ESCAPE.sub(
        lambda match: _ESCAPED.get(match[1]) or bytes([int(match[1][1:], 16)]), text.encode(errors="surrogateescape")
    )


def _bytes_from_json(field: FieldDescriptor, value: Any, where: str) -> bytes:
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
        if isinstance(value, list) and all(isinstance(entry, int) for entry in value):
            return bytes(value)
    except (ValueError, binascii.Error):
        raise InvalidArgument(
            f"{where}: expected bytes, in base64 or as a list of 0 to 255, got {_short(value)}"
        ) from None
    raise _wrong(field, value, where)


def _signal_number(text: str, where: str) -> int:
    name = text.upper()
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value
    except KeyError:
        raise InvalidArgument(f"{where}: there is no signal {text!r}", hint="such as SIGTERM, usr1 or 15") from None
