"""What a guest says: its frames, answers, spans, metrics, statistics, console and logs. It is hostile."""

from __future__ import annotations

import io
import json
import time

from google.protobuf.message import DecodeError

from kata.errors import Unavailable
from kata.logs import formats
from kata.logs.read import merge, read_entries
from kata.metrics import exposition, table
from kata.protocols import agent_pb2, files, processes, traces
from kata.runtime.agent_client.client import shown
from kata.runtime.hypervisor import console
from kata.runtime.sandbox import statistics
from kata.runtime.tracing.guest import GuestSpans
from kata.shim import metrics as shim_metrics
from kata.ttrpc import frames
from kata.ttrpc.connection import Connection, Role
from kata.ttrpc.envelope import Request
from kata.ttrpc.errors import RemoteProtocolError
from tests.fuzz.target import scratch, target

_MAX_FRAME = 4096
_KNOWN = {name: (metric.kind, metric.text) for name, metric in table.GUEST.items()}


def _fed(connection: Connection, data: bytes) -> int:
    """Feed bytes in pieces of the first one's size; returns the events."""
    size, data = data[0] or 1, data[1:]
    count = 0
    for start in range(0, len(data), size):
        for event in connection.feed(data[start : start + size]):
            count += 1
            reply = getattr(event, "reply", b"")
            assert len(reply) <= _MAX_FRAME + frames.HEADER.size
    connection.eof()
    return count


@target(RemoteProtocolError, share=16)
def ttrpc_answers(data: bytes) -> object:
    """Frames from a server, with calls and a stream in progress."""
    connection = Connection(Role.CLIENT, _MAX_FRAME)
    for _ in range(3):
        connection.request(Request("s", "Unary"))
    connection.open_stream(Request("s", "Stream"), client_streams=True)
    return _fed(connection, data) if data else None


@target(RemoteProtocolError, share=16)
def ttrpc_requests(data: bytes) -> object:
    """Frames from a client."""
    connection = Connection(Role.SERVER, _MAX_FRAME)
    count = _fed(connection, data) if data else 0
    assert len(connection.open_streams) <= count
    return count


@target(Unavailable, share=8)
def guest_process_list(data: bytes) -> object:
    """The list of a container's processes."""
    found = processes.parse_list(data)
    assert all(0 < pid <= processes.MAX_PID for pid, _ in found)
    return found


@target(Unavailable, is_document=True, share=8)
def guest_copy_report(data: bytes) -> object:
    """What the guest says of files, before and after a copy."""
    try:
        found = files.Found.from_json(data)
        assert len(found.kind) <= 16
    except Unavailable:
        pass
    report = files.Report.from_json(data)
    assert len(report.skipped) + len(report.plain) <= 40
    return report


@target(share=8)
def guest_metrics(data: bytes) -> object:
    """Metrics in Prometheus' format, which are written anew."""
    families, _ = exposition.read(data.decode(errors="replace"), _KNOWN, 1000)
    written = exposition.write(families.values(), exposition.label_text({"sandbox_id": "x"}))
    again, dropped = exposition.read(exposition.write(families.values()), _KNOWN, 1000)
    assert dropped == 0
    assert again == families
    assert all(line.isprintable() for line in written.split("\n"))
    return written


@target(DecodeError, share=8)
def guest_statistics(data: bytes) -> object:
    """A container's statistics, as containerd, Prometheus and `kata stats` get them."""
    answer = agent_pb2.StatsContainerResponse.FromString(data)
    json.dumps(statistics.of_cgroup(answer.cgroup_stats))
    return [shim_metrics.metrics(answer, unified=unified).SerializeToString() for unified in (False, True)]


@target(share=8)
def guest_spans(data: bytes) -> object:
    """Spans of a guest, of which those of its calls are sent on."""
    spans = GuestSpans({"sandbox": "x"})
    now = time.time_ns()
    spans.begin(traces.TraceParent(b"t" * 16, b"parent01"), now - 10)
    spans.begin(traces.TraceParent(b"t" * 16, b"parent02"), now - 5)
    spans.end(b"parent02", now - 1)
    accepted = spans.accept(data, now)
    assert accepted is None or len(accepted) < 128 * (4096 * 34 + 1024)
    traces.parse(data[:100].decode(errors="replace"))
    return accepted


@target(share=8)
def guest_console(data: bytes) -> object:
    """Console of a guest, as it is kept and shown."""
    ring = console.RingFile(scratch("console") / "console.log", limit=512)
    try:
        for start in range(0, len(data), 100):
            ring.write(data[start : start + 100])
        said = ring.tail(20)
        whole = console.text(ring.path, 512)
    finally:
        ring.close()
    line = shown(data.decode(errors="replace"))
    assert line.isprintable()
    assert len(line) <= 1003
    for text in (said, whole):
        assert all(one.isprintable() or one in "\n\t" for one in text)
        assert len(text) <= 20 * 501 + 512
    return said


@target(is_document=True, share=1)
def guest_logs(data: bytes) -> object:
    """Lines of logs, read as those of each origin and written in each format."""
    for name in ("shim.log", "console.log", "qemu.log"):
        entries = merge([list(read_entries(io.BytesIO(data), name))])
        for form in formats.FORMATS.values():
            out = io.StringIO()
            form(entries, out)
            assert all(one.isprintable() or one in "\n\t" for one in out.getvalue())
    return None
