"""Traces of what a sandbox does on this host, and of what its guest does for it; see docs/guide/tracing.md.

Whoever has something to record calls `span` or `record` here. Off, as by default, they cost a look at a variable, and
nothing is imported: `turn_on` loads OpenTelemetry's SDK (`kata.runtime.tracing.tracer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kata.runtime.config.settings import RuntimeConfig
    from kata.runtime.tracing.tracer import Tracer

_OFF: AbstractContextManager[None] = nullcontext()
_tracer: Tracer | None = None


def active() -> Tracer | None:
    """The tracer of this process; None if tracing is off."""
    return _tracer


def span(name: str, container: str = "") -> AbstractContextManager[None]:
    """Record the body, with its error, as part of the span that is current, if there is one.

    Args:
        name: what is done.
        container: id of the container that it is done for; "" for the one that is worked on.
    """
    return _tracer.span(name, container) if _tracer else _OFF


def record(name: str, begin: float, container: str = "") -> None:
    """Record what ends now, as `span`.

    Args:
        name: what was done.
        begin: when it began, by `time.monotonic`.
        container: id of the container that it was done for.
    """
    if _tracer:
        _tracer.record(name, begin, container)


def turn_on(config: RuntimeConfig, sandbox_id: str, namespace: str, annotations: Mapping[str, str]) -> Tracer:
    """Trace from now on in this process, which has one sandbox; inside a running event loop.

    Args:
        config: where spans are sent.
        sandbox_id: whose spans these are.
        namespace: containerd's; "" without one.
        annotations: of the sandbox's first container.
    """
    global _tracer
    from kata.runtime.tracing.identity import attributes
    from kata.runtime.tracing.tracer import Tracer

    _tracer = Tracer(config, attributes(sandbox_id, namespace, annotations))
    return _tracer


async def turn_off() -> None:
    """Send what has been recorded, for a second at most, and stop tracing."""
    global _tracer
    ending, _tracer = _tracer, None
    if ending:
        await ending.close()
