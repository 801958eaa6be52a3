"""Spans to collectors, over gRPC and HTTP: there, away, unwilling."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from kata.agent import otlp as by_hand
from kata.agent.tracing import Span
from kata.errors import InvalidArgument
from kata.trace_forwarder import exporting as module
from kata.trace_forwarder.buffer import MAX_BATCH, Batch, Buffer
from kata.trace_forwarder.exporting import Exporting
from kata.trace_forwarder.otlp import Endpoint, ExportError, exporter, headers, parse_endpoint
from tests.support.otlp import Collector, grpc_collector, http_collector
from tests.support.waiting import eventually_async

Collecting = Callable[..., AbstractContextManager[Collector]]
BOTH = pytest.mark.parametrize(
    ("collecting", "is_grpc"), [(grpc_collector, True), (http_collector, False)], ids=["grpc", "http"]
)


def batch(*names: str) -> Batch:
    spans = [Span(name, b"A" * 8, b"", 1, 2) for name in names]
    return Batch(by_hand.encode(b"T" * 16, spans), len(spans))


def endpoint(port: int, *, is_grpc: bool) -> Endpoint:
    return parse_endpoint(f"http://127.0.0.1:{port}", "grpc" if is_grpc else "http")


@BOTH
async def test_to_a_collector(collecting: Collecting, is_grpc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20abc")
    with collecting() as collector:
        way = exporter(endpoint(collector.port, is_grpc=is_grpc))
        assert await way.export(batch("one", "two").payload) == 0
        collector.rejected = 1
        assert await way.export(batch("three").payload) == 1
        assert collector.names == ["one", "two", "three"]
        assert collector.headers[0]["authorization"] == "Basic abc"
        await way.close()


@BOTH
async def test_one_that_does_not_want_them_and_one_that_may_later(collecting: Collecting, is_grpc: bool) -> None:
    with collecting() as collector:
        way = exporter(endpoint(collector.port, is_grpc=is_grpc))
        for status, again in ((3 if is_grpc else 400, False), (4 if is_grpc else 503, True)):
            collector.fail = status
            with pytest.raises(ExportError) as caught:
                await way.export(batch("one").payload)
            assert caught.value.again is again
        await way.close()


@BOTH
async def test_one_that_is_not_there(collecting: Collecting, is_grpc: bool) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        way = exporter(endpoint(unused.getsockname()[1], is_grpc=is_grpc))
        with pytest.raises(ExportError) as caught:
            await way.export(b"")
        assert caught.value.again
        await way.close()


@BOTH
async def test_one_that_comes_back(
    collecting: Collecting, is_grpc: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "_MAX_RETRY_S", 0.5)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    buffer = Buffer(max_spans=3)
    way = exporter(endpoint(port, is_grpc=is_grpc))
    exporting = Exporting(buffer, way, "the collector")
    task = asyncio.create_task(exporting.run())
    for number in range(6):
        buffer.put(batch(str(number)))
        await asyncio.sleep(0)
    await eventually_async(lambda: "is away, spans wait" in caplog.text, "it says so")
    with collecting(port) as collector:
        await eventually_async(lambda: len(collector.names) >= 3, "those that were kept have arrived")
        assert await exporting.flush(20) == 0
    exporting.report_dropped()
    assert collector.names[-3:] == ["3", "4", "5"]
    assert exporting.exported + exporting.lost == 6
    assert "spans are lost, the last because the collector is too slow, or away" in caplog.text
    assert "is back after" in caplog.text
    task.cancel()
    await asyncio.wait({task})
    await way.close()


async def test_the_end_waits_for_what_came_a_moment_before() -> None:
    with http_collector() as collector:
        buffer = Buffer()
        exporting = Exporting(buffer, exporter(endpoint(collector.port, is_grpc=False)), "the collector")
        task = asyncio.create_task(exporting.run())
        await asyncio.sleep(0.05)
        buffer.put(batch("last"))
        assert await exporting.flush(20) == 0
        assert collector.names == ["last"]
        task.cancel()
        await asyncio.wait({task})


class Unwilling:
    """An exporter whose collector does not want anything."""

    async def export(self, payload: bytes) -> int:
        raise ExportError("invalid argument: \x1b[31mred", again=False)

    async def close(self) -> None:
        pass


async def test_what_is_not_wanted_is_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    buffer = Buffer()
    exporting = Exporting(buffer, Unwilling(), "the collector")
    task = asyncio.create_task(exporting.run())
    buffer.put(batch("one", "two"))
    await eventually_async(lambda: exporting.lost == 2, "they are lost")
    assert "2 spans are lost, the last because the collector does not take them" in caplog.text
    assert "\x1b" not in caplog.text
    task.cancel()
    await asyncio.wait({task})


async def test_a_collector_that_stays_away_does_not_keep_the_forwarder(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(Unwilling):
        async def export(self, payload: bytes) -> int:
            raise ExportError("away", again=True)

    buffer = Buffer()
    exporting = Exporting(buffer, Away(), "the collector")
    task = asyncio.create_task(exporting.run())
    buffer.put(batch("one", "two"))
    await asyncio.sleep(0.05)
    buffer.put(batch("three"))
    assert await exporting.flush(0.2) == 3
    task.cancel()
    await asyncio.wait({task})


class TestBuffer:
    async def test_the_oldest_go_first(self) -> None:
        buffer = Buffer(max_bytes=1000, max_spans=10)
        for number in range(30):
            buffer.put(Batch(bytes([number]) * 10, 1))
        assert (len(buffer), buffer.take_dropped(), buffer.take_dropped()) == (10, 20, 0)
        taken = await buffer.take()
        assert (taken.payload[:1], taken.spans) == (bytes([20]), 10)

    async def test_bytes_count_as_well(self) -> None:
        buffer = Buffer(max_bytes=100, max_spans=10)
        for _ in range(3):
            buffer.put(Batch(bytes(60), 2))
        assert (len(buffer), buffer.dropped) == (2, 4)

    async def test_an_export_is_of_bounded_size(self) -> None:
        buffer = Buffer()
        for _ in range(5):
            buffer.put(Batch(bytes(MAX_BATCH // 2), 1))
        assert (await buffer.take()).spans == 2

    async def test_several_messages_are_one(self) -> None:
        buffer = Buffer()
        buffer.put(batch("one"))
        buffer.put(batch("two", "three"))
        with http_collector() as collector:
            taken = await buffer.take()
            await exporter(endpoint(collector.port, is_grpc=False)).export(taken.payload)
            assert collector.names == ["one", "two", "three"]
        assert taken.spans == 3


@pytest.mark.parametrize(
    ("text", "protocol", "wanted"),
    [
        ("http://localhost:4317", "auto", Endpoint(True, False, "localhost", 4317)),
        ("https://host", "auto", Endpoint(True, True, "host", 4317)),
        ("http://host:4318", "auto", Endpoint(False, False, "host", 4318, "/v1/traces")),
        ("http://host:9000/otlp/v1/traces", "auto", Endpoint(False, False, "host", 9000, "/otlp/v1/traces")),
        ("http://host", "http", Endpoint(False, False, "host", 4318, "/v1/traces")),
        ("http://[::1]:4318/", "grpc", Endpoint(True, False, "::1", 4318)),
    ],
)
def test_endpoints(text: str, protocol: str, wanted: Any) -> None:
    assert parse_endpoint(text, protocol) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "localhost:4317", "ftp://host", "http://", "http://host:99999", "http://user@host", "http://host?x=1",
     "http://host:14268/api/traces"],
)  # fmt: skip
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_endpoint(text)
    with pytest.raises(InvalidArgument):
        parse_endpoint("http://host/path", "grpc")


def test_headers() -> None:
    assert headers({}) == {}
    assert headers({"OTEL_EXPORTER_OTLP_HEADERS": "A=b%20c, D = e=f ,nonsense"}) == {"a": "b c", "d": "e=f"}
