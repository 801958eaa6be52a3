"""Answers as text (YAML) or as JSON; whatever a hostile guest has put into them is escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import yaml
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kata.agent_ctl.catalog import entry_of, is_map, is_repeated
from kata.errors import ResourceExhausted

#: Values of a message that are shown: a hostile guest packs millions into one, which would take minutes and gigabytes.
MAX_VALUES = 100_000


def as_yaml(message: Message) -> str:
    """A message as YAML, all in ASCII; "" if it has no fields. Bytes are text, or hex:… if they are not UTF-8.

    Raises:
        ResourceExhausted: it has more than MAX_VALUES values.
    """
    data = _Reader(_text_of).plain(message)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=120) if data else ""


def as_data(message: Message) -> dict[str, Any]:
    """A message for JSON, with bytes in base64: `json://…` takes it again.

    Raises:
        ResourceExhausted: it has more than MAX_VALUES values.
    """
    return _Reader(lambda value: base64.b64encode(value).decode()).plain(message)


def as_json(data: dict[str, Any]) -> str:
    """One line of JSON, all in ASCII."""
    return json.dumps(data) + "\n"


class _Reader:
    """Reads a message into dictionaries and lists.

    Args:
        decode: what becomes of bytes.
    """

    def __init__(self, decode: Callable[[bytes], str]) -> None:
        self._decode = decode
        self._left = MAX_VALUES

    def plain(self, message: Any) -> dict[str, Any]:
        """Every field, also those that are 0 or empty; of those that can be absent, the ones that are there.

        Raises:
            ResourceExhausted: they are too many.
        """
        found: dict[str, Any] = {}
        self._left -= len(message.DESCRIPTOR.fields)
        for field in message.DESCRIPTOR.fields:
            value = getattr(message, field.name)
            if is_repeated(field):
                self._left -= len(value)
            if self._left < 0:
                raise ResourceExhausted(f"the message has more than {MAX_VALUES} values, which are not shown")
            if is_map(field):
                of = entry_of(field)[1]
                found[field.name] = {key: self._single(of, value[key]) for key in sorted(value)}
            elif is_repeated(field):
                found[field.name] = [self._single(field, entry) for entry in value]
            elif not _can_be_absent(field) or message.HasField(field.name):
                found[field.name] = self._single(field, value)
        return found

    def _single(self, field: FieldDescriptor, value: Any) -> Any:
        if field.message_type is not None:
            return self.plain(value)
        if field.enum_type is not None:
            known = field.enum_type.values_by_number.get(value)
            return value if known is None else known.name
        return self._decode(value) if isinstance(value, bytes) else value


def _can_be_absent(field: FieldDescriptor) -> bool:
    """Whether proto3 knows absent from empty: messages, and what is `optional`, which is in a oneof of its own."""
    return field.message_type is not None or field.containing_oneof is not None


def _text_of(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"hex:{value.hex()}"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines are blocks, as far as they have nothing to escape."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
