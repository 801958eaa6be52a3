"""Untrusted JSON documents: bounded, checked against their digests, read by type."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from kata.archive.tar import shown
from kata.errors import InvalidArgument
from kata.runtime.images.source import Source

MAX_SIZE = 4 * 1024 * 1024
MAX_ITEMS = 10_000

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


class Document:
    """A JSON object. Every getter raises InvalidArgument for a value of another type.

    A key that is absent or null is empty: image builders write both.

    Args:
        value: as a JSON parser returns it.
        label: names it in errors.

    Raises:
        InvalidArgument: it is not an object.
    """

    def __init__(self, value: object, label: str) -> None:
        if not isinstance(value, dict):
            raise InvalidArgument(f"{label}: expected a JSON object")
        self._value = value
        self.label = label

    def text(self, key: str) -> str:
        """A string."""
        return self._get(key, str, "a string") or ""

    def digest(self, key: str) -> str:
        """A sha256 or sha512 digest."""
        return checked_digest(self.text(key), f"{self.label}: {key}")

    def object(self, key: str) -> Document:
        """An object."""
        return Document(self._get(key, dict, "an object") or {}, f"{self.label}: {key}")

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings.

        Raises:
            InvalidArgument: it has another type, or more than `MAX_ITEMS` items.
        """
        items = self._list(key)
        if not all(isinstance(item, str) for item in items):
            raise InvalidArgument(f"{self.label}: {key} is not a list of strings")
        return tuple(items)

    def objects(self, key: str) -> list[Document]:
        """A list of objects."""
        return [Document(item, f"{self.label}: {key}[{number}]") for number, item in enumerate(self._list(key))]

    def mapping(self, key: str) -> dict[str, str]:
        """An object of strings.

        Raises:
            InvalidArgument: it has another type, or more than `MAX_ITEMS` items.
        """
        value = self._get(key, dict, "an object") or {}
        if len(value) > MAX_ITEMS or not all(isinstance(item, str) for item in value.values()):
            raise InvalidArgument(f"{self.label}: {key} is not an object of strings")
        return dict(value)

    def _list(self, key: str) -> list[Any]:
        value = self._get(key, list, "a list") or []
        if len(value) > MAX_ITEMS:
            raise InvalidArgument(f"{self.label}: {key} has more than {MAX_ITEMS} items")
        return list(value)

    def _get(self, key: str, kind: type, expected: str) -> Any:
        value = self._value.get(key)
        if value is not None and not isinstance(value, kind):
            raise InvalidArgument(f"{self.label}: {key} is not {expected}")
        return value


def load(source: Source, name: str, digest: str | None = None) -> Document:
    """Load a JSON object.

    Args:
        source: of the image.
        name: of the file.
        digest: that its bytes must have; None for any.

    Raises:
        InvalidArgument: it is missing, too large, not a JSON object, or has another digest.
    """
    content = read(source, name)
    label = f"{source.label}: {shown(name)}"
    if digest is not None:
        algorithm, _, expected = digest.partition(":")
        if hashlib.new(algorithm, content).hexdigest() != expected:
            raise InvalidArgument(f"{label} does not match its digest", hint="the archive is damaged: fetch it again")
    return Document(parse(content, label), label)


def read(source: Source, name: str) -> bytes:
    """A document's bytes.

    Raises:
        InvalidArgument: it is missing, or larger than `MAX_SIZE` bytes.
    """
    with source.open(name) as stream:
        content = stream.read(MAX_SIZE + 1)
    if len(content) > MAX_SIZE:
        raise InvalidArgument(f"{source.label}: {shown(name)} is larger than {MAX_SIZE} bytes")
    return content


def parse(content: bytes, label: str) -> object:
    """Parse JSON.

    Args:
        content: its bytes.
        label: what it is; begins the message of an error.

    Raises:
        InvalidArgument: it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{label} is not JSON: {str(error)[:200]}") from error


def checked_digest(text: str, label: str) -> str:
    """Return `text` if it is a digest of a supported algorithm; it is safe as part of a path then.

    Raises:
        InvalidArgument: it is not.
    """
    if not _DIGEST.fullmatch(text):
        raise InvalidArgument(f"{label}: invalid sha256 or sha512 digest {text[:100]!r}")
    return text
