"""The kinds of values of settings: how each is checked, parsed from an annotation, described and written.

A kind does not know the setting that uses it. `check` and `parse` raise a plain ValueError; the caller knows file,
section and key, and puts `expected` into the message.

Unused dataclass methods are not generated (eq=False, repr=False): this is imported during the start of a sandbox.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?")
_MAX_PATH = 4096
#: The greatest user id; the one after it stands for none.
_MAX_ID = 0xFFFFFFFE
_ID = re.compile(r"[1-9][0-9]{0,9}")


class Kind(Protocol):
    """The values that a setting may have."""

    @property
    def name(self) -> str:
        """The kind in a word or two, such as "integer" or "list of paths"."""

    @property
    def expected(self) -> str:
        """The values in words, with limits and unit: what follows "expected" in an error message."""

    def check(self, value: object) -> object:
        """The typed value of a TOML value, as `tomllib` returns it.

        Raises:
            ValueError: it is not of this kind; without a message, which the caller makes with `expected`.
        """

    def parse(self, text: str) -> object:
        """The typed value of an annotation, whose values are all strings.

        Raises:
            ValueError: it is not of this kind; without a message, as for `check`.
        """

    def toml(self, value: object) -> str:
        """A typed value, as `check` returns it, in TOML: what `check` accepts again."""


class Flag:
    """A boolean."""

    name: str = "boolean"
    expected: str = "true or false"

    def check(self, value: object) -> bool:
        """Implements `Kind.check`.

        Raises:
            ValueError: it is not a TOML boolean; 0 and 1 are integers.
        """
        if not isinstance(value, bool):
            raise ValueError
        return value

    def parse(self, text: str) -> bool:
        """Implements `Kind.parse`.

        Raises:
            ValueError: it is none of the values of Go's strconv.ParseBool, for which pods are written.
        """
        if text in ("1", "t", "T", "true", "TRUE", "True"):
            return True
        if text in ("0", "f", "F", "false", "FALSE", "False"):
            return False
        raise ValueError

    def toml(self, value: object) -> str:
        """Implements `Kind.toml`: true or false."""
        return "true" if value else "false"


@dataclass(eq=False, repr=False)
class Integer:
    """An integer from `minimum` to `maximum`; with `round_up`, a fraction is rounded up (Kata's vCPUs)."""

    minimum: int
    maximum: int
    unit: str = ""
    round_up: bool = False
    name: str = "integer"

    @property
    def expected(self) -> str:
        """The limits, and the unit if there is one."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{'a number' if self.round_up else 'an integer'} from {self.minimum} to {self.maximum}{unit}"

    def check(self, value: object) -> int:
        """Implements `Kind.check`.

        Raises:
            ValueError: it is not an integer within the limits, which are included; with `round_up`, once rounded up.
        """
        if self.round_up and isinstance(value, float) and math.isfinite(value):
            value = math.ceil(value)
        # bool is an int to Python and not to the user.
        if not isinstance(value, int) or isinstance(value, bool) or not self.minimum <= value <= self.maximum:
            raise ValueError
        return value

    def parse(self, text: str) -> int:
        """Implements `Kind.parse`.

        Raises:
            ValueError: it is not an integer of at most 18 digits (with `round_up`: a number), or `check` refuses it.
        """
        if _WHOLE_NUMBER.fullmatch(text):
            return self.check(int(text))
        if self.round_up and _DECIMAL_NUMBER.fullmatch(text):
            return self.check(float(text))
        raise ValueError

    def toml(self, value: object) -> str:
        """Implements `Kind.toml`: decimal digits."""
        return str(value)


@dataclass(eq=False, repr=False)
class Text:
    """One line of text: one of `choices`, or a full match of `pattern`, or anything."""

    choices: tuple[str, ...] = ()
    pattern: str = ""
    description: str = "a string on one line"
    maximum: int = 4096
    name: str = "string"

    @property
    def expected(self) -> str:
        """The choices, quoted, or the description."""
        if self.choices:
            return " or ".join(quoted(choice) for choice in self.choices)
        return self.description

    def check(self, value: object) -> str:
        """Implements `Kind.check`.

        Raises:
            ValueError: it has more than `maximum` characters, or a control character, or is no choice or match.
        """
        if not isinstance(value, str) or len(value) > self.maximum or _CONTROL.search(value):
            raise ValueError
        if self.choices and value not in self.choices:
            raise ValueError
        if self.pattern and not re.fullmatch(self.pattern, value):
            raise ValueError
        return value

    def parse(self, text: str) -> str:
        """Implements `Kind.parse`: the text is checked like a TOML string."""
        return self.check(text)

    def toml(self, value: object) -> str:
        """Implements `Kind.toml`: a basic string."""
        return quoted(str(value))


class IdRange:
    """Successive user and group ids, "FIRST-LAST", or none, "": text, which `id_range` reads."""

    name: str = "range of ids"
    expected: str = f'"FIRST-LAST" with ids from 1 to {_MAX_ID}, or ""'

    def check(self, value: object) -> str:
        """Implements `Kind.check`.

        Raises:
            ValueError: it is not a string of that form, or FIRST is greater than LAST.
        """
        if not isinstance(value, str) or (value and not id_range(value)):
            raise ValueError
        return value

    def parse(self, text: str) -> str:
        """Implements `Kind.parse`: the text is checked like a TOML string."""
        return self.check(text)

    def toml(self, value: object) -> str:
        """Implements `Kind.toml`: a basic string."""
        return quoted(str(value))


def id_range(text: str) -> range:
    """The ids of an `IdRange`; none if it is empty or not of that form."""
    first, _, last = text.partition("-")
    if not (_ID.fullmatch(first) and _ID.fullmatch(last) and int(last) <= _MAX_ID):
        return range(0)
    return range(int(first), int(last) + 1)


@dataclass(eq=False, repr=False)
class Document:
    """Text of several lines; in an annotation, in base64."""

    maximum: int
    name: str = "text"

    @property
    def expected(self) -> str:
        """The limit, and how an annotation has it."""
        return f"text of at most {self.maximum} characters (in an annotation: in base64)"

    def check(self, value: object) -> str:
        """Implements `Kind.check`.

        Raises:
            ValueError: it is no text, too long, or has control characters other than tabs and newlines.
        """
        if not isinstance(value, str) or len(value) > self.maximum:
            raise ValueError
        if _CONTROL.search(value.replace("\n", "").replace("\t", "")):
            raise ValueError
        return value

    def parse(self, text: str) -> str:
        """Implements `Kind.parse`.

        Raises:
            ValueError: it is no base64 of text in UTF-8, or `check` refuses that.
        """
        # Most sandboxes have none, and this is imported during their start.
        import base64

        return self.check(base64.b64decode(text, validate=True).decode())

    def toml(self, value: object) -> str:
        """Implements `Kind.toml`: a basic string, on one line."""
        return quoted(str(value)).replace("\n", "\\n").replace("\t", "\\t")


@dataclass(eq=False, repr=False)
class FilePath:
    """An absolute path without `..`; with `glob`, it may have wildcards, with `optional`, be empty, which is None."""

    glob: bool = False
    optional: bool = False

    @property
    def name(self) -> str:
        """Either "glob" or "path"."""
        return "glob" if self.glob else "path"

    @property
    def expected(self) -> str:
        """Implements `Kind.expected`."""
        return f'an absolute {self.name} without ".."' + (', or ""' if self.optional else "")

    def check(self, value: object) -> Path | None:
        """Implements `Kind.check`.

        Raises:
            ValueError: its form is wrong, or it is longer than 4096 characters; whether it exists does not matter.
        """
        if self.optional and value == "":
            return None
        if not isinstance(value, str) or not value.startswith("/") or len(value) > _MAX_PATH or _CONTROL.search(value):
            raise ValueError
        path = Path(value)
        if ".." in path.parts:
            raise ValueError
        return path

    def parse(self, text: str) -> Path | None:
        """Implements `Kind.parse`: the text is checked like a TOML string."""
        return self.check(text)

    def toml(self, value: object) -> str:
        """Implements `Kind.toml`: a basic string."""
        return quoted("" if value is None else str(value))


class Regex:
    """A regular expression, kept as its text."""

    name: str = "regular expression"
    expected: str = "a regular expression"

    def check(self, value: object) -> str:
        """Implements `Kind.check`.

        Raises:
            ValueError: `re` does not compile it, or it is longer than 1024 characters.
        """
        if not isinstance(value, str) or len(value) > 1024:
            raise ValueError
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError from error
        return value

    def parse(self, text: str) -> str:
        """Implements `Kind.parse`: the text is checked like a TOML string."""
        return self.check(text)

    def toml(self, value: object) -> str:
        """Implements `Kind.toml`: a basic string."""
        return quoted(str(value))


@dataclass(eq=False, repr=False)
class ListOf:
    """A list of items of one kind; an annotation separates them by `;`, as Kata's do."""

    item: Kind
    plural: str

    @property
    def name(self) -> str:
        """The kind of the items, in the plural."""
        return f"list of {self.plural}"

    @property
    def expected(self) -> str:
        """Implements `Kind.expected`."""
        return f"a list of at most 256 {self.plural}"

    def check(self, value: object) -> tuple[object, ...]:
        """Implements `Kind.check`.

        Raises:
            ValueError: it has more than 256 items, or `item` refuses one.
        """
        if not isinstance(value, list) or len(value) > 256:
            raise ValueError
        return tuple(self.item.check(entry) for entry in value)

    def parse(self, text: str) -> tuple[object, ...]:
        """Implements `Kind.parse`: items are separated by `;`, stripped of white space; empty ones are skipped."""
        return self.check([part.strip() for part in text.split(";") if part.strip()])

    def toml(self, value: object) -> str:
        """Implements `Kind.toml`: an array on one line."""
        assert isinstance(value, tuple)
        return "[" + ", ".join(self.item.toml(entry) for entry in value) + "]"


def quoted(text: str) -> str:
    """`text`, which has no control characters, as a TOML basic string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
