"""Lines of key=value pairs ("logfmt"), as logrus writes them, and this project's shim.

References: go-logfmt's grammar; strconv.Quote of Go and RFC 8259 for what is quoted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_PAIR = re.compile(r'([^\s="]+)(?:=(?:"((?:[^"\\]|\\.)*)"(?=\s|$)|([^\s"]\S*)?(?=\s|$)))?(?:\s+|$)', re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[abfnrtv\"'\\/])", re.ASCII)
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_MAX_CODE_POINT = 0x10FFFF


def pairs(line: str) -> Iterator[tuple[str, str]]:
    """Yield keys and values; a key alone has the value "".

    Raises:
        ValueError: the line is not all of such pairs.
    """
    at = len(line) - len(line.lstrip())
    while at < len(line):
        pair = _PAIR.match(line, at)
        if pair is None:
            raise ValueError(f"no key=value pair at character {at + 1}")
        key, quoted, plain = pair.groups()
        yield key, plain or "" if quoted is None else _unquote(quoted)
        at = pair.end()


def _unquote(text: str) -> str:
    r"""Resolve escapes, but for bytes (\x1b), which Go writes for what is no text: they are readable as they are."""
    if "\\" not in text:
        return text
    plain = _ESCAPE.sub(_character, text)
    # JSON writes characters beyond U+FFFF as two; halves without the other one stay, for `visible` to show.
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _character(escape: re.Match[str]) -> str:
    name = escape[1]
    if name[0] in "uU" and len(name) > 1:
        number = int(name[1:], 16)
        return chr(number) if number <= _MAX_CODE_POINT else escape[0]
    return _LETTERS.get(name, name)
