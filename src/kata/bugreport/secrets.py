"""Secrets are taken out of whatever goes into a report. In doubt something is: a report can do without.

What is taken for one:

- the value of a name that looks like a secret's: of environment variables, annotations, options, JSON, TOML, headers
- in TOML, tables of that kind as a whole, such as containerd's `auth` of a registry
- user and password in a URL, and parameters of that kind after its question mark
- private keys in PEM, JSON web tokens, and tokens that are known by their first characters
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REMOVED = "[removed]"

#: Parts of names, wherever they are in one.
_PARTS = re.compile(
    r"passw|passphrase|secret|token|credential|private.?key|access.?key|api.?key|signature|cookie"
    r"|last-applied-configuration",
    re.IGNORECASE,
)
#: Words of names: between what is no letter, or where a capital begins.
_WORDS = frozenset({"auth", "auths", "authorization", "pass", "cred", "creds", "headers"})
#: Beside other words only: alone they are the key of a table, and a directory.
_WORDS_BESIDE_OTHERS = frozenset({"key", "pwd"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

# Whatever stands in quotes may stand in quotes that are themselves in a quoted text, and then have backslashes.
_NAMED = (
    # NAME=value, "name": "value", name: value
    re.compile(r"""(?<![\w./-])(?P<name>[\w./-]{1,200})(?:\\*["'])?[ \t]{0,9}(?:=>|:=|[=:])[ \t]{0,9}"""),
    # --name value, and both in a list
    re.compile(r"""(?<![\w-])--?(?P<name>\w[\w-]{0,200})(?:[ \t]+(?=[^\s-])|\\*["'],[ \t]{0,9}(?=\\*["']))"""),
    # {Key:NAME,Value:value}, {"name": "NAME", "value": "value"}
    re.compile(
        r"""(?i:\b(?:key|name))\\*["']?[:=][ \t]?\\*["']?(?P<name>[\w./-]{1,200})\\*["']?,[ \t]?"""
        r"""\\*["']?(?i:value)\\*["']?[:=][ \t]?"""
    ),
)
_QUOTE = re.compile(r"""\\*["']""")
_QUOTE_OR_END = re.compile(r"""\\*["']|\n|\Z""")
#: Characters of a list or an object that are looked through for its end.
_MAX_BRACKETS = 4096
_QUOTE_OR_BRACKET = re.compile(r"""\\*["']|[\[\]{}]""")
_SCHEME = re.compile(r"(?:basic|bearer|digest|negotiate)[ \t]+", re.IGNORECASE)
#: After `NAME=`, up to a space; an `&` is before the next parameter of a URL.
_WORD_VALUE = re.compile(r"""(?:[^\s"'&\\]|\\(?!\\*["']))+""")
#: After `name: `, up to the end of the line, or of the text in quotes that this is in.
_LINE_VALUE = re.compile(r"""(?:(?!\\*["'](?:[\s,\]})]|\Z))[^\n])+""")
_REST_OF_LINE = re.compile(r"[^\n]*")

_UNNAMED = (
    re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"""(?<=://)[^\s/@"'?#]{1,2000}(?=@)"""),
    re.compile(r"""(?<=[?&]sig=)[^\s"'&]+"""),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),  # RFC 7519
    re.compile(r"\b(?:gh[oprsu]_|github_pat_|glpat-|xox[abprs]-|sk-|hf_|npm_|dckr_pat_|AKIA|ASIA)[\w-]{16,}"),
    re.compile(r"(?i:(?<=\bbearer )|(?<=\bbasic ))[\w.~+/=-]{16,}"),
)


def is_secret_name(name: str) -> bool:
    """Whether the value of something of that name is left out of a report."""
    if _PARTS.search(name):
        return True
    words = {word.lower() for word in _WORD.findall(name)}
    return not _WORDS.isdisjoint(words) or (len(words) > 1 and not _WORDS_BESIDE_OTHERS.isdisjoint(words))


def redact(text: str) -> tuple[str, int]:
    """Take secrets out of a text of any kind.

    Returns:
        The text, and how many were taken out.
    """
    count = 0
    for pattern in _UNNAMED:
        text, found = pattern.subn(REMOVED, text)
        count += found
    for pattern in _NAMED:
        text, found = _redact_named(text, pattern)
        count += found
    return text, count


def _redact_named(text: str, pattern: re.Pattern[str]) -> tuple[str, int]:
    pieces: list[str] = []
    kept = position = count = 0
    while found := pattern.search(text, position):
        position = found.end()
        if not is_secret_name(found["name"]):
            continue
        begin, end = _value(text, found)
        if end > begin and text[begin:end] != REMOVED:
            pieces += [text[kept:begin], REMOVED]
            kept = position = end
            count += 1 - text.count(REMOVED, begin, end)
    return "".join([*pieces, text[kept:]]), count


def _value(text: str, found: re.Match[str]) -> tuple[int, int]:
    """Begin and end of the value that follows a name."""
    begin, after_name = found.end(), text[found.end("name") : found.end("name") + 1]
    before = re.search(r"""\\*["']\Z""", text[max(0, found.start("name") - 64) : found.start("name")])
    if before and after_name in ("=", ":"):
        return begin, _closing(text, begin, before[0])  # "NAME=value with spaces"
    ends_with_quote = after_name in ("\\", '"', "'")  # "name": value, after which comes the next member
    if quote := _QUOTE.match(text, begin):
        end = _closing(text, quote.end(), quote[0])
        behind = end + len(quote[0])
        more = _end(_WORD_VALUE, text, behind)  # 'a'b, as a shell takes it
        if ends_with_quote or more <= behind or text[behind] in ",;:)]}":
            return quote.end(), end
        return quote.end(), more
    if scheme := _SCHEME.match(text, begin):
        return scheme.end(), _end(_WORD_VALUE, text, scheme.end())
    if text[begin : begin + 1] in ("[", "{"):
        end = _closing_bracket(text, begin)
        return begin, end if ends_with_quote else _end(_WORD_VALUE, text, end)
    spaced = text[begin - 1].isspace() and text[found.start("name") - 1 : found.start("name")] != "-"
    return begin, _end(_LINE_VALUE if spaced else _WORD_VALUE, text, begin)


def _closing(text: str, begin: int, quote: str) -> int:
    """Where a text in quotes ends; at the end of the line if nothing closes it.

    With n backslashes before its quotes, because the text is quoted itself, a backslash in it is 2 (n + 1) of them, and
    a quote in it has n + 1 more than those that end it.
    """
    depth = len(quote)
    for found in _QUOTE_OR_END.finditer(text, begin):
        if not found[0].endswith(quote[-1]):
            if found[0] in ("\n", ""):
                break
            continue
        if (len(found[0]) - depth) % (2 * depth) == 0:
            return found.end() - depth
    return _end(_REST_OF_LINE, text, begin)


def _closing_bracket(text: str, begin: int) -> int:
    """Where a list or an object ends; if nothing closes it, at the end of what was looked at."""
    depth = 0
    position = begin
    limit = min(begin + _MAX_BRACKETS, len(text))
    while found := _QUOTE_OR_BRACKET.search(text, position, limit):
        position = found.end()
        if found[0][-1] in "\"'":
            position = _closing(text, position, found[0]) + len(found[0])
            continue
        depth += 1 if found[0] in "[{" else -1
        if depth == 0:
            return position
    return limit


def _end(pattern: re.Pattern[str], text: str, begin: int) -> int:
    found = pattern.match(text, begin)
    return found.end() if found else begin


def redact_toml(document: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Take secrets out of a document of TOML.

    Returns:
        The document, and how many values were taken out.
    """
    count = 0

    def clean(value: Any) -> Any:
        nonlocal count
        if isinstance(value, Mapping):
            return {key: removed(part) if is_secret_name(key) else clean(part) for key, part in value.items()}
        if isinstance(value, list):
            return [clean(part) for part in value]
        if isinstance(value, str):
            value, found = redact(value)
            count += found
        return value

    def removed(value: Any) -> Any:
        nonlocal count
        # What is empty or a switch tells no secret, and may be what is wrong.
        if value in ("", [], {}) or isinstance(value, bool):
            return value
        count += 1
        return REMOVED

    result: dict[str, Any] = clean(document)
    return result, count
