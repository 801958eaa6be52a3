from __future__ import annotations

import json
import logging
import sys

import pytest

from kata.agent.log import MAX_MESSAGE, JsonFormatter, name_sandbox
from kata.log_fields import CONTAINER


def format_record(message: str, *arguments: object, error: BaseException | None = None) -> dict[str, str]:
    info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("kata.agent.main", logging.WARNING, "f", 1, message, arguments, info)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    decoded: dict[str, str] = json.loads(line)
    return decoded


def test_the_keys_that_log_tools_expect() -> None:
    entry = format_record("line %d\nline 2", 1)
    assert set(entry) == {"msg", "level", "ts", "subsystem", "version", "pid", "source", "name"}
    assert entry["msg"] == "line 1\nline 2"
    assert (entry["level"], entry["subsystem"], entry["name"]) == ("WARNING", "main", "kata-agent")


def test_sandbox_and_container_are_named_once_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = logging.NullHandler()
    handler.setFormatter(JsonFormatter())
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    record = logging.LogRecord("kata.agent.main", logging.INFO, "f", 1, "m", (), None)
    name_sandbox("box")
    token = CONTAINER.set("c1")
    try:
        entry = json.loads(handler.format(record))
    finally:
        CONTAINER.reset(token)
    assert (entry["sandbox"], entry["container"]) == ("box", "c1")
    name_sandbox("")
    assert {"sandbox", "container"}.isdisjoint(json.loads(handler.format(record)))


def test_an_exception_is_told_and_a_flood_is_cut() -> None:
    try:
        raise ValueError("the cause")
    except ValueError:
        assert "the cause" in format_record("failed", error=sys.exception())["msg"]
    assert len(format_record("x" * 100_000)["msg"]) == MAX_MESSAGE
