"""Check JSON against TypedDicts: kinds, integer ranges, required keys.

A TypedDict is the schema. Understood: `str`, `bool`, `Annotated[int, low, high]`, `Literal` of strings, `list[…]`,
`dict[str, …]`, `Any`, TypedDicts and their `Required`/`NotRequired`. Unknown keys pass untouched; null is the same as
absent, because Go writes it for an empty list. The module that defines the TypedDicts must not use `from __future__
import annotations`: with it Python 3.11 does not see `Required`.

Not for: what values mean.
"""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, Literal, NotRequired, Required, get_args, get_origin, get_type_hints, is_typeddict

from kata.errors import InvalidArgument

_SURROGATE = re.compile("[\ud800-\udfff]")


def conform(value: object, kind: Any, where: str) -> Any:
    """A copy of the value without nulls, and with a replacement character for what is not Unicode.

    Args:
        value: as a JSON parser returns it.
        kind: the type that it must have.
        where: its path, for errors, e.g. "process.user".

    Raises:
        InvalidArgument: it has another type, or a string in it cannot be a C string.
        TypeError: there is no rule for `kind`, which is a mistake in the declaration and not in the value.
    """  # noqa: DOC501 - `_wrong` makes an InvalidArgument
    origin = get_origin(kind)
    if is_typeddict(kind):
        return _typed_dict(value, kind, where)
    if kind is Any:
        return value
    if origin is Annotated:
        _, low, high = get_args(kind)
        return _integer(value, low, high, where)
    if origin is Literal:
        choices = get_args(kind)
        if value not in choices:
            raise _wrong(where, f"one of {', '.join(choices)}", value)
        return value
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(where, "a list", value)
        (item,) = get_args(kind)
        return [conform(entry, item, f"{where}[{index}]") for index, entry in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        item = get_args(kind)[1]
        return {_text(key, where): conform(entry, item, f"{where}[{key!r}]") for key, entry in value.items()}
    if kind is str:
        return _text(value, where)
    if kind is bool:
        if not isinstance(value, bool):
            raise _wrong(where, "true or false", value)
        return value
    raise TypeError(f"{where}: no rule for {kind}")


def _typed_dict(value: object, kind: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where or "the document", "an object", value)
    present = {key: entry for key, entry in value.items() if entry is not None}
    for key in sorted(kind.__required_keys__ - present.keys()):
        raise InvalidArgument(f"{where}.{key} is missing" if where else f"{key} is missing")
    hints = _hints(kind)
    prefix = f"{where}." if where else ""
    return {key: conform(entry, hints[key], prefix + key) if key in hints else entry for key, entry in present.items()}


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {
        key: get_args(hint)[0] if get_origin(hint) in (Required, NotRequired) else hint for key, hint in hints.items()
    }


def _integer(value: object, low: int, high: int, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(where, f"an integer from {low} to {high}", value)
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "a string", value)
    # A NUL would end the string early for the kernel and for crun: what was checked would not be what is used.
    if "\0" in value:
        raise _wrong(where, "a string without NUL", value)
    # Half of a pair of surrogates is no character. Go, which most engines are written in, replaces it as well.
    return value if value.isascii() else _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)


def _wrong(where: str, wanted: str, value: object) -> InvalidArgument:
    got = ascii(value) if isinstance(value, str | int | float | bool) else type(value).__name__
    return InvalidArgument(f"{where}: expected {wanted}, got {got if len(got) <= 60 else got[:57] + '...'}")
