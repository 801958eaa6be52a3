"""`kata-trace-forwarder` as people run it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from kata.protocols.traces import frame
from kata.trace_forwarder.main import invoke
from kata.version import VERSION
from tests.support.otlp import grpc_collector, http_collector
from tests.support.waiting import eventually

FORWARDER = str(Path(sys.executable).with_name("kata-trace-forwarder"))


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    code = invoke(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


@contextmanager
def running(path: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The forwarder as a process that listens."""
    process = subprocess.Popen(
        [FORWARDER, f"--socket-path={path}", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        eventually(Path(f"{path}_10240").exists, "the forwarder listens")
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def send(path: Path, payload: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{path}_10240")
        sock.sendall(frame(payload))


def hostile() -> bytes:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"T" * 16, span_id=b"A" * 8)
    span.name = "two\nlines \x1b[31m <b>"
    span.kind = Span.SPAN_KIND_SERVER
    span.start_time_unix_nano, span.end_time_unix_nano = 1_700_000_000_000_000_001, 1_700_000_000_001_500_001
    span.attributes.add(key="list").value.array_value.values.add().int_value = 7
    span.attributes.add(key="bytes").value.bytes_value = b"\0\xff"
    span.attributes.add(key="none")
    span.status.code, span.status.message = Status.STATUS_CODE_ERROR, "why"
    span.events.add(name="event", time_unix_nano=(1 << 64) - 1)
    span.links.add(trace_id=b"L" * 16, span_id=b"M" * 8)
    return request.SerializeToString()


def test_dump_only_prints_each_span_whole_on_one_line(tmp_path: Path) -> None:
    with running(tmp_path / "f", "--dump-only", "--trace-name=mine") as process:
        send(tmp_path / "f", hostile())
        assert process.stdout
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert line.isascii()
    assert b"\x1b" not in line
    span: dict[str, Any] = json.loads(line)
    assert span == {
        "trace_id": (b"T" * 16).hex(),
        "span_id": (b"A" * 8).hex(),
        "parent_span_id": None,
        "name": "two\nlines \x1b[31m <b>",
        "kind": "server",
        "start": "2023-11-14T22:13:20.000000001Z",
        "end": "2023-11-14T22:13:20.001500001Z",
        "duration_ms": 1.5,
        "status": "error",
        "message": "why",
        "attributes": {"list": [7], "bytes": "00ff", "none": None},
        "events": [{"time": "2554-07-21T23:34:33.709551615Z", "name": "event", "attributes": {}}],
        "links": [{"trace_id": (b"L" * 16).hex(), "span_id": (b"M" * 8).hex(), "attributes": {}}],
        "resource": {"service.name": "mine"},
    }


@pytest.mark.parametrize("collecting", [grpc_collector, http_collector], ids=["grpc", "http"])
def test_it_exports_and_flushes_at_its_end(tmp_path: Path, collecting: Any) -> None:
    with collecting() as collector:
        protocol = "grpc" if collecting is grpc_collector else "http"
        address = f"--otlp-endpoint=http://127.0.0.1:{collector.port}"
        with running(tmp_path / "f", address, f"--otlp-protocol={protocol}") as process:
            send(tmp_path / "f", hostile())
            eventually(lambda: len(collector.spans), "the span has arrived")
            process.send_signal(signal.SIGINT)
            _, log = process.communicate(timeout=30)
            assert process.returncode == 0
        (span,) = collector.spans
        assert span["resource"] == {"service.name": "kata-agent"}
        assert b'msg="1 spans were exported, 0 were lost"' in log
        assert b"name=kata-trace-forwarder" in log
    assert not os.path.lexists(tmp_path / "f_10240")


def test_a_reader_that_has_gone_ends_it(tmp_path: Path) -> None:
    with running(tmp_path / "f", "--dump-only") as process:
        assert process.stdout
        process.stdout.close()
        process.stdout = None
        send(tmp_path / "f", hostile())
        assert process.wait(20) == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    "arguments", [["--jaeger-host", "h"], ["--jaeger-port=6831"], ["--jaeger-host=h", "--dump-only"]]
)
def test_the_flags_of_a_protocol_that_is_gone(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, _, (error, hint) = outcome(capsys, *arguments)
    assert code == 2
    assert "Jaeger's own protocol" in error
    assert "--otlp-endpoint" in hint


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--otlp-endpoint=nonsense"], "invalid OTLP endpoint 'nonsense'"),
        (["--vsock-cid=here"], "invalid context id 'here'"),
        (["--vsock-cid=any", "--vsock-port=0"], "invalid value for '--vsock-port'"),
        (["--vsock-cid=any", "--vsock-port=9999999999"], "invalid value for '--vsock-port'"),
        (["--log-level=loud"], "invalid value for '-l'"),
        (["extra"], "unexpected extra argument"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    code, _, lines = outcome(capsys, *arguments)
    assert code == 2
    assert text in lines[0]
    assert lines[0].startswith("kata-trace-forwarder: ")


def test_a_socket_that_cannot_be_made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, lines = outcome(capsys, "--dump-only", f"--socket-path={tmp_path}/no/f")
    assert code == 1
    assert "no such file or directory" in lines[0]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, "--version") == (0, f"kata-trace-forwarder {VERSION}\n", [])
