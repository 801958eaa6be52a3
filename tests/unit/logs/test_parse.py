"""Lines as the components write them: ours by their own formatters, Kata's and containerd's by their formats."""

from __future__ import annotations

import io
import json
import logging
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.agent.log import JsonFormatter
from kata.logs import logfmt
from kata.logs.entry import Entry, Kind, format_time, missing_fields, parse_time, wrong_value
from kata.logs.parse import Origin, parse_line
from kata.logs.read import MAX_LINE, merge, origin_of, read_entries
from kata.logs.visible import visible
from kata.shim.log import LogfmtFormatter

CONTAINERD = 'time="2026-11-30T10:00:00.123456789Z" level=info msg="starting containerd" revision= version="1.6.20~ds1"'
CONTAINERD_JSON = '{"error":"ttrpc: closed","level":"warning","msg":"x","time":"2026-11-30T10:00:00.5+01:00"}'
#: Kata's shim with `enable_debug`: the agent's line is a field.
KATA_SHIM = (
    'time="2026-11-30T10:00:02Z" level=debug msg="reading guest console" console-protocol=unix '
    "name=containerd-shim-v2 pid=4711 sandbox=box source=virtcontainers subsystem=sandbox "
)
KATA_AGENT = (
    '{"msg":"handling signal","level":"DEBG","ts":"2026-11-30T10:00:01.5Z","subsystem":"signals","source":"agent",'
    '"name":"kata-agent","version":"0.1.0","pid":"85","container-id":"c1"}'
)
KATA_MONITOR = (
    'time="2026-11-30T10:00:03.25Z" level=error msg="no socket" name=kata-monitor pid=9 source=kata-monitor error="x=y"'
)


def entry_of(text: str, origin: Origin = Origin.LOG, *, unpack: bool = True) -> Entry:
    entry = parse_line(text, "/a.log", 7, origin, unpack=unpack)
    assert entry is not None
    return entry


def record(message: str, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("kata.agent.main", level, "f", 1, message, (), None)


@pytest.mark.parametrize("message", ['a "quoted"\nline = é', "😀 \x1b[31m", "back\\slash \\n", "{}", ""])
def test_what_this_project_writes_is_complete(message: str) -> None:
    for line in (LogfmtFormatter("box").format(record(message)), JsonFormatter().format(record(message))):
        entry = entry_of(line)
        assert (entry.kind, entry.problem, entry.level) == (Kind.RECORD, "", "warning")
        assert entry.msg == visible(message, keep="\n\t")
        assert missing_fields(entry) == []
        assert (entry.file, entry.line) == ("/a.log", 7)


def test_the_shims_line_has_its_sandbox() -> None:
    assert entry_of(LogfmtFormatter("box").format(record("x"))).sandbox == "box"


def test_containerds_lines_lack_what_only_kata_writes() -> None:
    entry = entry_of(CONTAINERD)
    assert (entry.msg, entry.level) == ("starting containerd", "info")
    assert entry.data == {"revision": "", "version": "1.6.20~ds1"}
    assert format_time(entry.time) == "2026-11-30T10:00:00.123456789Z"
    assert missing_fields(entry) == ["pid", "source", "name"]
    in_json = entry_of(CONTAINERD_JSON)
    assert (in_json.msg, in_json.data) == ("x", {"error": "ttrpc: closed"})
    assert format_time(in_json.time) == "2026-11-30T09:00:00.500000000Z"


def test_what_journalctl_puts_before_a_line_tells_who_wrote_it() -> None:
    entry = entry_of(f"Nov 30 11:00:00 node-1 containerd[321]: {CONTAINERD}")
    assert (entry.name, entry.pid, entry.msg) == ("containerd", 321, "starting containerd")
    entry = entry_of(f"Nov  3 11:00:00 node-1 kata[321]: {KATA_MONITOR}")
    assert (entry.name, entry.pid) == ("kata-monitor", 9)


def test_an_agents_record_takes_the_place_of_the_shims() -> None:
    entry = entry_of(f"{KATA_SHIM}vmconsole={json.dumps(KATA_AGENT)}")
    assert (entry.msg, entry.level, entry.source, entry.name, entry.pid) == (
        "handling signal",
        "debug",
        "agent",
        "kata-agent",
        85,
    )
    assert (entry.sandbox, entry.container) == ("box", "c1")
    assert format_time(entry.time) == "2026-11-30T10:00:02.000000000Z", "the guest has another clock"
    assert entry.data["ts"] == "2026-11-30T10:00:01.500000000Z"
    assert entry.data["level"] == "DEBG"


def test_it_stays_where_it_was_on_request() -> None:
    entry = entry_of(f"{KATA_SHIM}vmconsole={json.dumps(KATA_AGENT)}", unpack=False)
    assert (entry.msg, entry.source) == ("reading guest console", "virtcontainers")
    assert entry.data["vmconsole"] == KATA_AGENT


def test_other_lines_of_the_console_in_the_shims() -> None:
    entry = entry_of(f'{KATA_SHIM}vmconsole="[    0.5] Booting"')
    assert (entry.kind, entry.msg, entry.source, entry.sandbox) == (Kind.TEXT, "[    0.5] Booting", "vmconsole", "box")
    garbled = entry_of(f"{KATA_SHIM}vmconsole={json.dumps(KATA_AGENT[:40] + '[ 1.0] oops')}")
    assert garbled.kind is Kind.GARBLED
    assert "no record in JSON" in garbled.problem


def test_an_agents_record_of_kata_1() -> None:
    inner = 'time="2026-11-30T10:00:01Z" level=info msg=ready name=kata-agent pid=1 source=agent'
    line = (
        f'time="2026-11-30T10:00:02Z" level=info msg={json.dumps(inner)} name=kata-proxy pid=3 sandbox=s source=agent'
    )
    entry = entry_of(line)
    assert (entry.msg, entry.name, entry.sandbox) == ("ready", "kata-agent", "s")


@pytest.mark.parametrize(
    ("text", "origin", "kind", "source"),
    [
        ("[    1.234567] random: crng init done", Origin.LOG, Kind.TEXT, "kernel"),
        ("<6>[    1.234567][    T1] Run /init", Origin.LOG, Kind.TEXT, "kernel"),
        ("Welcome", Origin.CONSOLE, Kind.TEXT, "vmconsole"),
        ('{"msg": ', Origin.CONSOLE, Kind.GARBLED, "vmconsole"),
        ("qemu-system-x86_64: warning: x", Origin.QEMU, Kind.TEXT, "qemu"),
        ("qemu-system-x86_64: warning: x", Origin.LOG, Kind.BROKEN, ""),
        ('{"msg": ', Origin.LOG, Kind.BROKEN, ""),
        ("[1, 2]", Origin.LOG, Kind.BROKEN, ""),
        ('{"a": "b"}', Origin.LOG, Kind.BROKEN, ""),
        pytest.param('{"msg":' + "[" * 60_000, Origin.LOG, Kind.BROKEN, "", id="nested deeply"),
        pytest.param('{"msg":' + "9" * 60_000 + "}", Origin.LOG, Kind.BROKEN, "", id="a number of 60000 digits"),
        ('msg="never ends', Origin.LOG, Kind.BROKEN, ""),
        ('msg="a"b', Origin.LOG, Kind.BROKEN, ""),
        ("the word level= in a sentence", Origin.LOG, Kind.BROKEN, ""),
    ],
)
def test_lines_that_are_no_records(text: str, origin: Origin, kind: Kind, source: str) -> None:
    entry = entry_of(text, origin)
    assert (entry.kind, entry.source) == (kind, source)
    assert entry.msg == text
    assert bool(entry.problem) == (kind in (Kind.BROKEN, Kind.GARBLED))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("time=yesterday", "invalid time 'yesterday'"),
        ('time="2026-13-01T00:00:00Z"', "invalid time '2026-13-01T00:00:00Z'"),
        ('time="0001-01-01T00:00:00+05:00"', "invalid time '0001-01-01T00:00:00+05:00'"),
        ("pid=-1", "invalid pid '-1'"),
        ("pid=99999999999999999999", "invalid pid '99999999999999999999'"),
        ("pid=٣", "invalid pid '\\u0663'"),
        ("level=loud", "unknown level 'loud'"),
        ('source="two words"', "source has several words: 'two words'"),
        ('x="%!d(MISSING)"', "%!d(MISSING) shows a mistake of the program that wrote it"),
    ],
)
def test_wrong_values_are_told_and_kept(fields: str, problem: str) -> None:
    entry = entry_of(f"msg=m {fields}")
    assert entry.problem == problem
    key, _, value = fields.partition("=")
    assert value.strip('"') in (entry.data.get(key), entry.level, entry.source)


def test_a_field_that_comes_twice_keeps_both() -> None:
    entry = entry_of("msg=a msg=b x=1 x=2 level=info")
    assert (entry.msg, dict(entry.data)) == ("a", {"msg": "b", "x": "1\n2"})


def test_many_fields_of_a_name_take_little_time() -> None:
    entry = entry_of("msg=a " + "x=1 " * 16_000)
    assert entry.data["x"].count("1") == 16_000


def test_the_container_of_a_request() -> None:
    assert entry_of('msg=m req="container_id:\\"c7\\" exec_id:\\"e\\""').container == "c7"


def test_names_tell_what_a_file_has() -> None:
    assert origin_of("/run/kata/box/console.log") is origin_of("console.log.1") is Origin.CONSOLE
    assert origin_of("/x/qemu.log") is Origin.QEMU
    assert origin_of("-") is origin_of("/var/log/containerd.log") is Origin.LOG


@given(st.text(), st.sampled_from(Origin))
def test_whatever_a_line_is_it_becomes_one_entry(text: str, origin: Origin) -> None:
    entry = parse_line(text, "f", 1, origin)
    if entry is None:
        assert not text.strip()
        return
    assert all(character.isprintable() or character in "\n\t" for character in entry.msg)
    wrong_value(entry)
    if entry.kind is not Kind.RECORD and not entry.name:
        assert entry.msg == visible(text.rstrip("\r\n"), keep="\n\t")


FIELD = st.tuples(st.sampled_from(["msg", "level", "time", "pid", "req", "vmconsole", "x", "source"]), st.text())


@given(st.lists(FIELD, min_size=1))
def test_no_value_of_a_record_is_lost(fields: list[tuple[str, str]]) -> None:
    line = "msg=m " + " ".join(f"{key}={json.dumps(value)}" for key, value in fields)
    entry = entry_of(line, unpack=False)
    kept = "\n".join([entry.msg, entry.level, entry.source, *entry.data.values()])
    for key, value in fields:
        if key not in ("time", "pid"):
            assert visible(value, keep="\n\t") in kept or value.lower() == entry.level


@given(st.text(min_size=1))
def test_json_strings_are_read_as_they_were(text: str) -> None:
    assert list(logfmt.pairs(f"k={json.dumps(text)}")) == [("k", text)]


def test_gos_escapes() -> None:
    assert list(logfmt.pairs(r'a="\u00e9\U0001f600\t\x1b\"" b c=')) == [("a", 'é😀\t\\x1b"'), ("b", ""), ("c", "")]
    assert list(logfmt.pairs(r'a="\Uffffffff"')) == [("a", r"\Uffffffff")]


@given(st.datetimes().map(lambda time: time.isoformat(timespec="microseconds") + "Z"))
def test_times_are_read_as_they_were(text: str) -> None:
    assert format_time(parse_time(text)) == text[:-1] + "000Z"


class TestFiles:
    @given(st.binary(max_size=300))
    def test_every_line_that_is_not_blank_is_there(self, data: bytes) -> None:
        lines = [line for line in data.split(b"\n") if line.decode(errors="backslashreplace").strip()]
        assert len(list(read_entries(io.BytesIO(data), "f"))) == len(lines)

    def test_of_a_long_line_little_is_kept_and_the_rest_is_counted(self) -> None:
        flood = io.BytesIO(b'{"msg":"' + b"x" * (16 << 20) + b'"}\nmsg=next level=info\n')
        tracemalloc.start()
        entries = list(read_entries(flood, "console.log"))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [entry.line for entry in entries] == [1, 2]
        assert len(entries[0].msg) == MAX_LINE
        assert entries[0].problem == f"{8 + (16 << 20) + 2 + 1 - MAX_LINE} more bytes of the line are left out"
        assert entries[1].msg == "next"
        assert peak < 20 * MAX_LINE

    def test_a_line_of_just_the_size_is_whole(self) -> None:
        line = b"a" * (MAX_LINE - 1) + b"\n"
        entries = list(read_entries(io.BytesIO(line + line), "console.log"))
        assert [(len(entry.msg), entry.problem) for entry in entries] == [(MAX_LINE - 1, "")] * 2

    def test_they_are_merged_by_time(self) -> None:
        def log(name: str, *lines: str) -> list[Entry]:
            return list(read_entries(io.BytesIO("\n".join(lines).encode()), name))

        second = 'time="2026-11-30T10:00:0{}Z" msg={}'.format
        first = log("shim.log", second(1, "a"), second(5, "e"), second(3, "c"))
        console = log("console.log", "before", second(2, "b"), "after b", second(4, "d"), second(5, "f"))
        untimed = log("qemu.log", "qemu")
        merged = [entry.msg for entry in merge([first, console, untimed])]
        assert merged == ["qemu", "a", "before", "b", "after b", "c", "d", "e", "f"]
