"""Kernel options: fragments read and joined, a configuration held against what it must have.

Pure: text in, options and findings out. The format is that of a kernel's `.config`:

    CONFIG_NAME=y
    # CONFIG_NAME is not set

Reference: the kernel's Documentation/kbuild/kconfig.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kata.errors import InvalidArgument

#: The value of an option that is off. An option that a configuration does not name is off as well.
OFF = "n"
#: Of a whole configuration; the largest known has half a megabyte.
MAX_TEXT = 4 << 20

_SET = re.compile(r"CONFIG_(\w+)=(\S.*)")
_NOT_SET = re.compile(r"# CONFIG_(\w+) is not set")


@dataclass(frozen=True, slots=True)
class Finding:
    """An option that is not what it must be.

    Attributes:
        name: without CONFIG_.
        wanted: its value, OFF for none.
        found: what it is.
        reason: what it is wanted for.
    """

    name: str
    wanted: str
    found: str
    reason: str

    def __str__(self) -> str:
        return f"CONFIG_{self.name} is {self.found} instead of {self.wanted} ({self.reason})"


def parse(text: str, where: str) -> dict[str, str]:
    """The options of a fragment or of a whole configuration, in their order.

    Args:
        text: of the file.
        where: what the file is called in messages.

    Raises:
        InvalidArgument: a line is neither an option nor a comment, an option is set twice, or the text is too long.
    """
    if len(text) > MAX_TEXT:
        raise InvalidArgument(f"{where} is larger than {MAX_TEXT >> 20} MiB; that is no kernel configuration")
    options: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if found := _SET.fullmatch(line) or _NOT_SET.fullmatch(line):
            name, value = found[1], found[2] if found.re is _SET else OFF
            if options.setdefault(name, value) != value:
                raise InvalidArgument(f"{where}:{number}: CONFIG_{name} is set twice, and differently")
        elif line and not line.startswith("#"):
            raise InvalidArgument(
                f"{where}:{number}: invalid line '{line[:64]}'",
                hint="write CONFIG_NAME=y, or # CONFIG_NAME is not set",
            )
    return options


def join(fragments: Mapping[str, Mapping[str, str]], *, replace: Iterable[str] = ()) -> dict[str, str]:
    """All options of several fragments.

    Args:
        fragments: options by the fragment's name, in order.
        replace: names of the fragments that may change what one before them says: those of the user.

    Raises:
        InvalidArgument: two fragments contradict each other.
    """
    joined: dict[str, str] = {}
    origin: dict[str, str] = {}
    may_replace = set(replace)
    for fragment, options in fragments.items():
        for name, value in options.items():
            if joined.get(name, value) != value and fragment not in may_replace:
                raise InvalidArgument(
                    f"{fragment} wants CONFIG_{name} to be {value}, {origin[name]} wants {joined[name]}"
                )
            joined[name], origin[name] = value, fragment
    return joined


def render(options: Mapping[str, str]) -> str:
    """Options as a configuration."""
    return "".join(
        f"# CONFIG_{name} is not set\n" if value == OFF else f"CONFIG_{name}={value}\n"
        for name, value in options.items()
    )


def compare(
    wanted: Mapping[str, str], found: Mapping[str, str], reasons: Mapping[str, str], *, modules: bool = False
) -> list[Finding]:
    """Where a configuration differs from what is wanted of it.

    Args:
        wanted: options that matter.
        found: all options of the configuration.
        reasons: what each wanted option is for.
        modules: take a module for what is wanted to be built in.
    """
    return [
        Finding(name, value, found.get(name, OFF), reasons[name])
        for name, value in wanted.items()
        if found.get(name, OFF) != value and not (modules and value == "y" and found.get(name) == "m")
    ]
