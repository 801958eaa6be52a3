"""Command lines of a script: an RPC with its arguments, or a built-in command.

    CreateSandbox hostname=pod dns="nameserver 192.0.2.1"
    GetGuestDetails json://{"mem_block_size": true}
    SetPolicy file:///tmp/request.json
    repeat 3
    Check

Pure: what is here is read, not run. Nothing is sent before all lines have been read without an error.
"""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kata.agent_ctl import duration
from kata.agent_ctl.catalog import RPCS, close_to, describe, find_rpc
from kata.errors import InvalidArgument
from kata.ttrpc.typed import Rpc

FOR_EVER = -1
ATTACH = "attach"

#: Names with what they do. They are Kata's, but for `attach`.
BUILT_IN = {
    ATTACH: "Connect standard input, output and error with a process until its output ends [cid=ID exec_id=ID]",
    "echo": "Display the arguments",
    "help": "List all commands, or show the fields of one [RPC]",
    "list": "List all commands",
    "quit": "Exit this program",
    "repeat": "Repeat the next command n times, -1 for ever",
    "sleep": "Pause, e.g. 500ms, 5s or 1m30s; digits alone are nanoseconds",
}

_JSON, _FILE = "json://", "file://"


@dataclass(frozen=True)
class Document:
    """An argument `json://…`: fields as a JSON object."""

    value: dict[str, Any]


@dataclass(frozen=True)
class File:
    """An argument `file://PATH`: a file with a JSON object, read when the request is built."""

    path: str


@dataclass(frozen=True)
class Pair:
    """An argument `key=value`; the key is a path such as `storages[0].driver`."""

    key: str
    value: str


Argument = Document | File | Pair


@dataclass(frozen=True)
class Call:
    """A call of an RPC."""

    rpc: Rpc
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True)
class Attach:
    """The streams of a process; the arguments name it."""

    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True)
class Say:
    """A text that is printed."""

    text: str


@dataclass(frozen=True)
class Sleep:
    """A pause, in seconds."""

    seconds: float


@dataclass(frozen=True)
class Quit:
    """The end of the script."""


Action = Call | Attach | Say | Sleep | Quit


@dataclass(frozen=True)
class Step:
    """An action, and how many times it is carried out; FOR_EVER for no limit."""

    action: Action
    times: int = 1

    @property
    def needs_agent(self) -> bool:
        """Whether it makes a call."""
        return isinstance(self.action, Call | Attach)


class Reader:
    """Reads lines one by one: `repeat` is about the line after it."""

    def __init__(self) -> None:
        self._times = 1

    def read(self, line: str) -> Step | None:
        """The step of a line; None for `repeat`, an empty line and a comment.

        Raises:
            InvalidArgument: there is no such command, or its arguments are malformed.
        """
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if not name or name.startswith("#"):
            return None
        if name == "repeat":
            self._times = _parse_times(rest)
            return None
        step = Step(_action(name, rest), self._times)
        self._times = 1
        return step


def read_all(lines: Iterable[str]) -> list[Step]:
    """The steps of a whole script.

    Raises:
        InvalidArgument: as `Reader.read`.
    """
    reader = Reader()
    return [step for line in lines if (step := reader.read(line))]


def _action(name: str, rest: str) -> Action:
    if rpc := find_rpc(name):
        return Call(rpc, tuple(_arguments(name, rest)))
    if name not in BUILT_IN:
        close = close_to(name, [*RPCS, *BUILT_IN])
        raise InvalidArgument(
            f"there is no command {name!r}",
            hint=f"close: {', '.join(close)}" if close else "`list` lists all commands",
        )
    if name == ATTACH:
        return Attach(tuple(_arguments(name, rest)))
    if name == "echo":
        return Say(f"{rest}\n")
    if name == "sleep":
        return Sleep(duration.parse(rest, "sleep:"))
    if name == "help" and rest:
        return Say(_help(rest))
    if rest:
        raise InvalidArgument(f"{name} takes no arguments, got {rest!r}")
    return Quit() if name == "quit" else Say(listing())


def _parse_times(text: str) -> int:
    if not re.fullmatch(r"-1|[1-9]\d{0,17}", text):
        raise InvalidArgument(f"repeat {text!r} is not a number of times", hint="1 or more, or -1 for ever")
    return int(text)


def _help(name: str) -> str:
    if rpc := find_rpc(name):
        return describe(rpc)
    if name in BUILT_IN:
        return f"{name}  ({BUILT_IN[name]})\n"
    close = close_to(name, [*RPCS, *BUILT_IN])
    raise InvalidArgument(f"there is no command {name!r}", hint=f"close: {', '.join(close)}" if close else None)


def listing() -> str:
    """What `list` prints."""
    return "\n".join(
        (
            "Built-in commands:\n",
            *(f"  {name} ({what})" for name, what in BUILT_IN.items()),
            "\nAgent API commands:\n",
            *(f"  {name} ({rpc.service.rpartition('.')[2]})" for name, rpc in RPCS.items()),
            "",
        )
    )


def _arguments(name: str, text: str) -> Iterator[Argument]:
    while text := text.lstrip():
        # Before a word is taken: JSON has quotes and spaces of its own.
        if text.startswith(_JSON):
            value, text = _document(name, text[len(_JSON) :])
            yield Document(value)
            continue
        word, text = _word(name, text)
        key, separator, value_text = word.partition("=")
        if word.startswith(_FILE):
            yield File(word[len(_FILE) :])
        elif separator and key:
            yield Pair(key, value_text)
        else:
            raise InvalidArgument(
                f"{name}: cannot read the argument {word!r}", hint="use FIELD=VALUE, json://{…} or file:///PATH"
            )


def _word(name: str, text: str) -> tuple[str, str]:
    """The first word, without its quotes, and the rest.

    Raises:
        InvalidArgument: a quotation does not end.
    """
    instream = io.StringIO(text)
    lexer = shlex.shlex(instream, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        word = lexer.get_token() or ""
    except ValueError as error:
        raise InvalidArgument(f"{name}: {str(error).lower()} in {text!r}") from None
    return word, instream.read()


def _document(name: str, text: str) -> tuple[dict[str, Any], str]:
    text = text.lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{name}: json:// is not followed by JSON: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise InvalidArgument(f"{name}: json:// is not followed by an object")
    return value, text[end:]
