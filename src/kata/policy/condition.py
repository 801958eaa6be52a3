"""What a field of a request has to be: read from TOML, and held against a value.

    "text", 5, true, ["a", "b"]             equal
    { like = "/srv/*" }                     a text in which `*` stands for any characters, also none
    { one_of = [CONDITION, …] }             any of these
    { each = CONDITION }                    of a list, or the values of a map: every element; also of none
    { fields = { "PATH" = CONDITION, … } }  of a message

Conditions are checked against the protocol's types when they are read. Evaluating one takes time that grows with the
product of value and condition at most: there are no regular expressions, which a long text could keep busy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kata.errors import InvalidArgument
from kata.policy.field import FLAG, MESSAGE, NUMBER, OTHER, TEXT, Field, Shape, find

#: Conditions within conditions.
MAX_DEPTH = 8
_MAX_SHOWN = 100
_OPERATORS = ("like", "one_of", "each", "fields")
_TYPES: dict[str, type] = {TEXT: str, NUMBER: int, FLAG: bool}


class Condition(Protocol):
    """Something that a value has to be."""

    def wrong(self, value: Any) -> str:
        """What is wrong with a value, on one line without control characters; "" if nothing is."""


@dataclass(frozen=True)
class Equals:
    """The value is this one."""

    wanted: Any

    def wrong(self, value: Any) -> str:
        """Implements `Condition`."""
        return "" if value == self.wanted else f"is {shown(value)}, not {shown(self.wanted)}"


@dataclass(frozen=True)
class Like:
    """The value is a text of these parts, with anything between them."""

    parts: tuple[str, ...]

    def wrong(self, value: Any) -> str:
        """Implements `Condition`."""
        first, *others = self.parts
        text, position = str(value), len(first)
        fits = text.startswith(first)
        if not others:
            fits = text == first
        else:
            *middle, last = others
            for part in middle:
                found = text.find(part, position)
                fits = fits and found >= 0
                position = found + len(part)
            fits = fits and text.endswith(last) and len(text) - len(last) >= position
        return "" if fits else f"is {shown(value)}, not like {shown('*'.join(self.parts))}"


@dataclass(frozen=True)
class OneOf:
    """One of these holds."""

    conditions: tuple[Condition, ...]

    def wrong(self, value: Any) -> str:
        """Implements `Condition`."""
        told = ""
        for condition in self.conditions:
            told = condition.wrong(value)
            if not told:
                return ""
        return told if len(self.conditions) == 1 else f"is {shown(value)}, none of the {len(self.conditions)} allowed"


@dataclass(frozen=True)
class Each:
    """It holds for every element."""

    condition: Condition

    def wrong(self, value: Any) -> str:
        """Implements `Condition`."""
        for number, element in enumerate(value, start=1):
            if told := self.condition.wrong(element):
                return f"has as number {number} what {told}"
        return ""


@dataclass(frozen=True)
class Fields:
    """It holds for fields of a message."""

    conditions: tuple[tuple[Field, Condition], ...]

    def wrong(self, value: Any) -> str:
        """Implements `Condition`."""
        for field, condition in self.conditions:
            if told := condition.wrong(field.of(value)):
                return f"{field.path} {told}"
        return ""


def parse(written: Any, shape: Shape, where: str, depth: int = 0) -> Condition:
    """A condition from a value of TOML.

    Args:
        written: the value.
        shape: of what the condition is about.
        where: for errors.
        depth: how many conditions it is within.

    Raises:
        InvalidArgument: it is none, or cannot hold for such a value.
    """
    if depth > MAX_DEPTH:
        raise InvalidArgument(f"{where}: more than {MAX_DEPTH} conditions within each other")
    if not isinstance(written, Mapping):
        return Equals(_value(written, shape, where))
    operators = list(written)
    if len(operators) != 1 or operators[0] not in _OPERATORS:
        raise InvalidArgument(f"{where}: expected a value, or a table with one of {', '.join(_OPERATORS)}")
    operator, operand = operators[0], written[operators[0]]
    inside = f"{where}: {operator}"
    if operator == "like":
        if shape.many or shape.kind != TEXT:
            raise InvalidArgument(f"{inside} is for texts, and this is a {_described(shape)}")
        if not isinstance(operand, str):
            raise InvalidArgument(f"{inside}: expected a text")
        return Like(tuple(operand.split("*")))
    if operator == "one_of":
        if not isinstance(operand, list) or not operand:
            raise InvalidArgument(f"{inside}: expected a list of conditions")
        return OneOf(tuple(parse(one, shape, inside, depth + 1) for one in operand))
    if operator == "each":
        if not shape.many:
            raise InvalidArgument(f"{inside} is for lists, and this is a {_described(shape)}")
        return Each(parse(operand, shape.one, inside, depth + 1))
    if shape.many or shape.kind != MESSAGE:
        raise InvalidArgument(f"{inside} is for messages, and this is a {_described(shape)}")
    return fields(operand, shape, inside, depth + 1)


def fields(written: Any, shape: Shape, where: str, depth: int = 0) -> Fields:
    """Conditions on fields of a message; the arguments are those of `parse`.

    Raises:
        InvalidArgument: they are none, or cannot hold for such a message.
    """
    if not isinstance(written, Mapping) or shape.message is None:
        raise InvalidArgument(f"{where}: expected a table of paths and conditions")
    found = []
    for path, condition in written.items():
        field = find(shape.message, path, where)
        found.append((field, parse(condition, field.shape, f"{where}: {path}", depth)))
    return Fields(tuple(found))


def _value(written: Any, shape: Shape, where: str) -> Any:
    """A value of TOML that a field may be equal to.

    Raises:
        InvalidArgument: the field is of another type.
    """
    if shape.kind == OTHER:
        raise InvalidArgument(f"{where}: bytes cannot be compared")
    wanted = _TYPES.get(shape.kind)
    values = written if shape.many and isinstance(written, list) else [written]
    # bool is an int to Python, and not to the user.
    if (
        wanted is None
        or shape.many != isinstance(written, list)
        or not all(isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool) for value in values)
    ):
        raise InvalidArgument(f"{where}: expected a {_described(shape)}, not {shown(written)}")
    return written


def _described(shape: Shape) -> str:
    kind = shape.message.name if shape.message else shape.kind
    return f"list of {kind}" if shape.many else kind


def shown(value: Any) -> str:
    """A value for people: on one line, bounded, without control characters."""
    if hasattr(value, "DESCRIPTOR"):
        return f"a {value.DESCRIPTOR.name}"
    text = (
        f"{len(value)} of them" if isinstance(value, list) and _has_messages(value) else repr(value)[: 4 * _MAX_SHOWN]
    )
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _has_messages(values: list[Any]) -> bool:
    return bool(values) and hasattr(values[0], "DESCRIPTOR")
