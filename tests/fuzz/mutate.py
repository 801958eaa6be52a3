"""Mutations of documents: another value in a place of it, a part twice or not at all, and only then other bytes.

Bytes that are changed at random are hardly ever JSON again. libFuzzer calls this in the place of its own mutations,
which it can ask for (`otherwise`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

#: Values that somebody did not think of.
_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308, "", " ", "0", "-1",
    "/", "..", "../..", "/a/../b", "a\0b", "a\nb", "\x1b[31m", "\ud800", "é" * 40, "x" * 300, "9" * 30, "9" * 5000,
    "*", "[", "(a+)+$", "%s", "{}", "=", ":", ",", "/dev/null", "/proc/self/mem", "1e9999", [], {}, [[]], [{}], [None],
    {"": ""}, {"a": {"b": {"c": []}}},
)  # fmt: skip

Otherwise = Callable[[bytes, int], bytes]


def document(data: bytes, most: int, seed: int, otherwise: Otherwise) -> bytes:
    """Mutate a document.

    Args:
        data: the document, or anything else.
        most: bytes of the result.
        seed: of what is random.
        otherwise: mutates bytes.
    """
    chance = random.Random(seed)
    if chance.random() < 0.25:
        return otherwise(data, most)
    try:
        holder = {"": json.loads(data)}
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            _change(holder, chance)
        made = json.dumps(holder[""]).encode()
    except (ValueError, RecursionError):
        return otherwise(data, most)
    return made if len(made) <= most else otherwise(data, most)


def _change(holder: dict[str, Any], chance: random.Random) -> None:
    places = _places(holder)
    inside, key = chance.choice(places)
    how = chance.randrange(6)
    if how == 0:
        inside[key] = _copy(chance.choice(_ODD))
    elif how == 1:
        inside[key] = _copy(_at(chance.choice(places)))
    elif how == 2 and inside is not holder:
        del inside[key]
    elif how == 3 and isinstance(inside, list):
        inside.insert(key, _copy(inside[key]))
    elif how == 4 and isinstance(inside[key], str):
        text = inside[key]
        at = chance.randrange(len(text) + 1)
        inside[key] = text[:at] + str(chance.choice(_ODD)) + text[at + chance.randrange(3) :]
    elif how == 5 and isinstance(inside[key], dict):
        names = [name for where, name in places if isinstance(where, dict)]
        inside[key][str(chance.choice((*names, *_ODD)))] = _copy(chance.choice(_ODD))
    else:
        inside[key] = [inside[key]] if chance.random() < 0.5 else {str(chance.choice(_ODD)): inside[key]}


def _places(holder: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Each value of a document, as what it is in and its key or index there."""
    found: list[tuple[Any, Any]] = [(holder, "")]
    for inside, key in found:
        value = inside[key]
        if isinstance(value, dict):
            found += [(value, name) for name in value]
        elif isinstance(value, list):
            found += [(value, index) for index in range(len(value))]
    return found


def _at(place: tuple[Any, Any]) -> Any:
    return place[0][place[1]]


def _copy(value: Any) -> Any:
    """Nothing may be in a document twice, or in itself."""
    return json.loads(json.dumps(value))
