"""Answers as text (YAML) or as JSON; whatever a hostile guest has put into them is escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import yaml
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kata.agent_ctl.catalog import is_map, is_repeated


def as_yaml(message: Message) -> str:
    """A message as YAML, all in ASCII; "" if it has no fields. Bytes are text, or hex:… if they are not UTF-8."""
    data = _plain(message, _text_of)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=120) if data else ""


def as_data(message: Message) -> dict[str, Any]:
    """A message for JSON, with bytes in base64: `json://…` takes it again."""
    return _plain(message, lambda value: base64.b64encode(value).decode())


def as_json(data: dict[str, Any]) -> str:
    """One line of JSON, all in ASCII."""
    return json.dumps(data) + "\n"


def _plain(message: Any, decode: Callable[[bytes], str]) -> dict[str, Any]:
    """Every field, also those that are 0 or empty; of those that can be absent, the ones that are there."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if is_map(field):
            of = field.message_type.fields_by_name["value"]
            found[field.name] = {key: _single(of, value[key], decode) for key in sorted(value)}
        elif is_repeated(field):
            found[field.name] = [_single(field, entry, decode) for entry in value]
        elif not _can_be_absent(field) or message.HasField(field.name):
            found[field.name] = _single(field, value, decode)
    return found


def _can_be_absent(field: FieldDescriptor) -> bool:
    """Whether proto3 knows absent from empty: messages, and what is `optional`, which is in a oneof of its own."""
    return field.message_type is not None or field.containing_oneof is not None


def _single(field: FieldDescriptor, value: Any, decode: Callable[[bytes], str]) -> Any:
    if field.message_type is not None:
        return _plain(value, decode)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    return decode(value) if isinstance(value, bytes) else value


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
