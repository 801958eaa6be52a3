"""One line of a log to one entry, whatever the line is: nothing is raised, and nothing but blank lines is left out.

time="2026-11-30T10:00:00Z" level=info msg="…"        containerd, Kata's shim, monitor and runtime, this shim
{"msg":"…","level":"INFO","ts":"…","pid":"1"}         agents, and containerd with `format = "json"`
… msg="reading guest console" vmconsole="{…}"         an agent's line in a line of Kata's shim
Nov 30 10:00:00 host containerd[42]: …                any of these, as journalctl prints them
[    1.234567] …                                      a kernel
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from kata.logs import logfmt
from kata.logs.entry import Entry, Kind, format_time, parse_time, wrong_value
from kata.logs.visible import visible

_JOURNAL = re.compile(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S+ ([^\s\[\]:]+)(?:\[(\d{1,10})\])?: ", re.ASCII)
_KERNEL = re.compile(r"(?:<\d{1,3}>)?\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ", re.ASCII)
#: What a line of pairs begins with and has to have; any sentence is a row of keys without values.
_IS_LOGFMT = re.compile(r"(?=\s*[^\s=]+=).*?(?:^|\s)(?:time|level|msg)=", re.DOTALL)
_KEYS = {
    "time": "time", "ts": "time", "timestamp": "time",
    "level": "level", "msg": "msg", "message": "msg", "source": "source", "name": "name", "pid": "pid",
    "container": "container", "container-id": "container", "container_id": "container", "cid": "container",
    "sandbox": "sandbox", "sandbox-id": "sandbox", "sandbox_id": "sandbox",
}  # fmt: skip
#: Of slog, in Kata's agent; of Python, in ours; short ones.
_LEVELS = {"warn": "warning", "err": "error", "erro": "error", "crit": "critical", "debg": "debug", "trce": "trace"}
_CONSOLE_MESSAGE = "reading guest console"
_CONTAINER_IN_REQUEST = re.compile(r'container_id:"([^"]*)"')
_MAX_PID = 2**31
#: Seconds; the year 9999 ends then.
_MAX_TIME = 253402300800


class Origin(Enum):
    """What is in a file, as its name tells: lines without a format are as they should be in some."""

    LOG = "log"
    CONSOLE = "vmconsole"
    QEMU = "qemu"


@dataclass(frozen=True)
class _Context:
    """What is known of a line before it is read: where it is, what its file has, and what journalctl said of it."""

    file: str
    line: int
    origin: Origin
    name: str = ""
    pid: int = 0

    def text(self, kind: Kind, text: str, *, source: str = "", problem: str = "") -> Entry:
        return Entry(
            self.file, self.line, kind, _clean(text), source=source, name=self.name, pid=self.pid, problem=problem
        )


def parse_line(text: str, file: str, line: int, origin: Origin = Origin.LOG, *, unpack: bool = True) -> Entry | None:
    """Make an entry of a line; None if it is blank.

    Args:
        text: the line; its end is left out.
        file: where it is from.
        line: its number.
        origin: what the file has.
        unpack: whether an agent's record in a record of the shim takes its place.
    """
    text = text.rstrip("\r\n")
    if not text.strip():
        return None
    context = _Context(file, line, origin)
    if journal := _JOURNAL.match(text):
        context = replace(context, name=journal[1], pid=_pid(journal[2] or "") or 0)
        text = text[journal.end() :]
    entry = _parse(text, context)
    return _unpack(entry, context) if unpack and entry.kind is Kind.RECORD else entry


def _parse(text: str, context: _Context) -> Entry:
    problem = "neither logfmt nor JSON"
    if text.startswith("{"):
        try:
            return _record(_json_pairs(text), context)
        except (ValueError, RecursionError) as error:
            problem = f"no record in JSON: {_clean(str(error))}"
            if context.origin is Origin.CONSOLE:
                return context.text(Kind.GARBLED, text, source=Origin.CONSOLE.value, problem=problem)
    elif _IS_LOGFMT.match(text):
        try:
            return _record(logfmt.pairs(text), context)
        except ValueError as error:
            problem = f"no record in logfmt: {error}"
    if _KERNEL.match(text):
        return context.text(Kind.TEXT, text, source="kernel")
    if context.origin is not Origin.LOG:
        return context.text(Kind.TEXT, text, source=context.origin.value)
    return context.text(Kind.BROKEN, text, problem=problem)


def _json_pairs(text: str) -> list[tuple[str, str]]:
    """The members of an object, values that are no strings as JSON.

    Raises:
        ValueError: it is not JSON, or no record.
        RecursionError: it is nested too deeply.
    """
    members = json.loads(text, object_pairs_hook=list)
    if not isinstance(members, list) or not {"msg", "message", "level", "time", "ts"}.intersection(
        member[0] for member in members if isinstance(member, tuple)
    ):
        raise ValueError("no msg, level or time")
    return [(key, value if isinstance(value, str) else _as_json(value)) for key, value in members]


def _as_json(value: object) -> str:
    # `object_pairs_hook` has made a list of pairs of each object.
    def plain(part: object) -> object:
        if isinstance(part, list) and part and all(isinstance(member, tuple) for member in part):
            return {key: plain(member) for key, member in part}
        return [plain(member) for member in part] if isinstance(part, list) else part

    return json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))


def _record(found: Iterable[tuple[str, str]], context: _Context) -> Entry:
    """Make an entry of fields. The first one of a name counts; the others, and what is invalid, are with the data."""
    fields: dict[str, str] = {}
    data: dict[str, list[str]] = {}
    for key, value in found:
        name = _KEYS.get(key)
        if name is not None and name not in fields:
            fields[name] = value
        else:
            data.setdefault(_clean(key), []).append(value)
    problems = []
    time, pid = _time(fields.get("time", "")), _pid(fields.get("pid", ""))
    for name, valid in (("time", time is not None or not fields.get("time")), ("pid", pid is not None)):
        if not valid:
            problems.append(f"invalid {name} {fields[name][:80]!a}")
            data.setdefault(name, []).append(fields[name])
    level = fields.get("level", "").lower()
    level = _LEVELS.get(level, level)
    if level != fields.get("level", ""):
        data.setdefault("level", []).append(fields["level"])  # as Kata does
    if not fields.get("container") and (asked := _CONTAINER_IN_REQUEST.search("".join(data.get("req", ())))):
        fields["container"] = asked[1]
    texts = {name: _clean(fields.get(name, "")) for name in ("msg", "source", "name", "container", "sandbox")}
    texts["name"] = texts["name"] or context.name
    entry = Entry(
        context.file,
        context.line,
        Kind.RECORD,
        time=time,
        level=_clean(level),
        pid=pid or context.pid,
        data={key: _clean("\n".join(values)) for key, values in data.items()},
        **texts,
    )
    return replace(entry, problem="; ".join(problems) or wrong_value(entry))


def _time(text: str) -> int | None:
    """Of RFC 3339, or seconds since 1970."""
    found = parse_time(text)
    if found is None and text:
        try:
            seconds = float(text)
        except ValueError:
            return None
        if math.isfinite(seconds) and 0 <= seconds < _MAX_TIME:
            return round(seconds * 1e9)
    return found


def _pid(text: str) -> int | None:
    """0 for no text, None for what is no process id."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_PID))):
        return None
    number = int(text)
    return number if 0 < number <= _MAX_PID else None


def _unpack(entry: Entry, context: _Context) -> Entry:
    """The agent's entry within an entry of Kata's shim, or that one.

    The time stays the shim's, as in Kata: the guest has another clock. The agent's is with the data.
    """
    if entry.msg == _CONSOLE_MESSAGE and entry.data.get("vmconsole"):
        inner = _parse(entry.data["vmconsole"], replace(context, origin=Origin.CONSOLE, name="", pid=0))
        if inner.kind is not Kind.RECORD:
            return replace(entry, kind=inner.kind, msg=inner.msg, source=inner.source, problem=inner.problem)
        data = dict(inner.data)
        if inner.time is not None:
            data.setdefault("ts", format_time(inner.time))
        return replace(
            inner,
            time=entry.time,
            data=data,
            container=inner.container or entry.container,
            sandbox=inner.sandbox or entry.sandbox,
        )
    if entry.source == "agent" and entry.msg.startswith("time="):  # of Kata 1.x
        inner = _parse(entry.msg, replace(context, origin=Origin.CONSOLE, name="", pid=0))
        if inner.kind is Kind.RECORD:
            return replace(inner, source="agent", sandbox=inner.sandbox or entry.sandbox)
    return entry


def _clean(text: str) -> str:
    return visible(text, keep="\n\t")
