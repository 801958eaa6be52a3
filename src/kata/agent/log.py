"""The agent's log: one JSON object a line on standard error, which is the console of the VM.

The keys are those that Kata's log tools expect: msg, level, ts, subsystem, version, pid, source, name, and
sandbox and container where they are known.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from kata.log_fields import FieldsFormatter
from kata.version import VERSION

#: Characters of one message. The console is an emulated serial line, where each byte is a VM exit: one very long text
#: must not stop the agent for seconds.
MAX_MESSAGE = 4096


class JsonFormatter(FieldsFormatter):
    """Formats a record as one line of JSON."""

    def __init__(self) -> None:
        super().__init__("kata-agent")

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, its message cut to MAX_MESSAGE characters."""
        fields = self.fields(record)
        fields["msg"] = fields["msg"][:MAX_MESSAGE]
        return json.dumps(
            fields
            | {
                "ts": datetime.fromtimestamp(record.created, UTC).isoformat(),
                "subsystem": record.name.rpartition(".")[2],
                "version": VERSION,
                "source": "agent",
            }
        )


def name_sandbox(sandbox_id: str) -> None:
    """Have all records name the sandbox from now on; "" for none."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, JsonFormatter):
            handler.formatter.sandbox = sandbox_id


def set_up_logging(level: str) -> None:
    """Send every logger's records of at least `level` to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # asyncio logs its choice of selector and slow callbacks at debug level, which is of no use here.
    logging.getLogger("asyncio").setLevel(max(logging.WARNING, logging.getLevelName(level)))
