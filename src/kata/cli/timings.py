"""`kata timings` and `kata metrics`: where a running sandbox's start time went, as text, metrics and spans.

References: OTLP 1.3 in JSON (opentelemetry-proto, trace/v1/trace.proto); Prometheus' text exposition format.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from kata.cli.naming import resolve_sandbox
from kata.cli.ps import short
from kata.errors import KataError
from kata.runtime.launch.timings import Phase, Start, read
from kata.runtime.ledger.journal import STATE_ROOT
from kata.runtime.ledger.names import split
from kata.version import VERSION

_BAR_WIDTH = 40


def load(sandbox: str, state_root: Path = Path(STATE_ROOT)) -> Start:
    """Read the start of a running sandbox.

    Raises:
        InvalidArgument: the name is invalid, or ambiguous.
        NotFound: the sandbox does not exist.
    """
    return read(resolve_sandbox(sandbox, state_root))


def as_table(phases: Sequence[Phase]) -> Table:
    """Format the phases as a table, a row per phase, with a bar for its place in the start."""
    end = max((phase.begin_ms + phase.length_ms for phase in phases), default=0.0) or 1.0
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("PHASE", no_wrap=True)
    table.add_column("OF")
    table.add_column("AT ms", justify="right", no_wrap=True)
    table.add_column("TOOK ms", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for phase in phases:
        table.add_row(
            phase.name, short(phase.subject), f"{phase.begin_ms:.1f}", f"{phase.length_ms:.1f}", _bar(phase, end)
        )
    return table


def _bar(phase: Phase, end: float) -> str:
    before = min(int(phase.begin_ms / end * _BAR_WIDTH), _BAR_WIDTH - 1)
    return " " * before + "━" * max(1, round(phase.length_ms / end * _BAR_WIDTH))


def load_all(state_root: Path = Path(STATE_ROOT)) -> dict[str, Start]:
    """Read the starts of all running sandboxes but for those that are still starting or have just ended.

    Returns:
        By the name of the sandbox's state directory.
    """
    found = {}
    for name in sorted(os.listdir(state_root)) if state_root.is_dir() else ():
        try:
            found[name] = load(name, state_root)
        except KataError:
            continue
    return found


def as_metrics(starts: Mapping[str, Start]) -> str:
    """Format the starts as Prometheus' text: when each phase began, and how long it took."""
    # Imported here: only this output needs it.
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    labels = ("sandbox_id", "namespace", "container_id", "phase")
    took = Gauge("kata_sandbox_start_phase_seconds", "Length of a phase of the start", labels, registry=registry)
    begins = Gauge(
        "kata_sandbox_start_phase_begin_seconds", "Begin of a phase, since the start's", labels, registry=registry
    )
    for name, start in starts.items():
        sandbox = split(name)
        for phase in start.phases:
            took.labels(*sandbox, phase.subject, phase.name).set(phase.length_ms / 1000)
            begins.labels(*sandbox, phase.subject, phase.name).set(phase.begin_ms / 1000)
    return generate_latest(registry).decode()


def as_spans(sandbox_id: str, start: Start) -> dict[str, Any]:
    """Build an ExportTraceServiceRequest of OTLP in JSON: one span for the start, and a child span per phase."""
    # Trace and span ids are the same each time, so that a collector that gets them twice keeps them once.
    trace = hashlib.sha256(f"{sandbox_id} {start.began}".encode()).hexdigest()

    def span(number: int, name: str, begin_ms: float, end_ms: float, subject: str = "") -> dict[str, Any]:
        attributes = {"kata.sandbox.id": sandbox_id, **({"container.id": subject} if subject else {})}
        return {
            "traceId": trace[:32],
            "spanId": f"{trace[32:44]}{number:04x}",
            **({"parentSpanId": f"{trace[32:44]}0000"} if number else {}),
            "name": name,
            "kind": 1,
            "startTimeUnixNano": str(round((start.began + begin_ms / 1000) * 1e9)),
            "endTimeUnixNano": str(round((start.began + end_ms / 1000) * 1e9)),
            "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()],
        }

    end = max((phase.begin_ms + phase.length_ms for phase in start.phases), default=0.0)
    spans = [span(0, "start", 0.0, end)]
    for number, phase in enumerate(start.phases, 1):
        spans.append(span(number, phase.name, phase.begin_ms, phase.begin_ms + phase.length_ms, phase.subject))
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "kata"}}]}
    scope = {"name": "kata.timings", "version": VERSION}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": spans}]}]}
