"""The log of one command in a file (`kata-runtime --log`), for `kata logs parse` and its like."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

from kata.log_fields import FieldsFormatter
from kata.shim.log import LogfmtFormatter

_NAME = "kata-runtime"


class _JsonFormatter(FieldsFormatter):
    """A record as one line of JSON, with the names of fields of Kata's runtime."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message contains."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        fields = self.fields(record)
        return json.dumps({"time": time, **fields, "level": fields["level"].lower(), "source": record.name})


def open_log(path: Path, *, as_json: bool) -> logging.Logger:
    """Append this process's log to a file from now on, beginning with the command line.

    Returns:
        Where the command logs its own end.

    Raises:
        OSError: the file cannot be written.
    """
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_JsonFormatter(_NAME) if as_json else LogfmtFormatter("", _NAME))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    logging.getLogger("asyncio").setLevel(logging.INFO)  # which selector it uses says nothing
    log = logging.getLogger("kata.cli")
    log.info("%s", shlex.join(sys.argv))
    return log
