"""The agent's log: one JSON object a line on standard error, which is the console of the VM.

The keys are those that Kata's log tools expect: msg, level, ts, subsystem, version, pid, source, name.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime

from kata.version import VERSION

#: Characters of one message. The console is an emulated serial line, where each byte is a VM exit: one very long text
#: must not stop the agent for seconds.
MAX_MESSAGE = 4096


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON. `extra={"fields": {...}}` adds keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, its message cut to MAX_MESSAGE characters."""
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}: {self.formatException(record.exc_info)}"
        entry: dict[str, object] = {
            "msg": message[:MAX_MESSAGE],
            "level": record.levelname,
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "subsystem": record.name.rpartition(".")[2],
            "version": VERSION,
            "pid": str(os.getpid()),
            "source": "agent",
            "name": "kata-agent",
        }
        return json.dumps(entry | getattr(record, "fields", {}))


def set_up_logging(level: str) -> None:
    """Send every logger's records of at least `level` to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # asyncio logs its choice of selector and slow callbacks at debug level, which is of no use here.
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, logging.getLevelName(level)))
