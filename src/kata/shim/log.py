"""The shim's log: logfmt lines into the bundle's `log` FIFO, which containerd copies into its own log."""

from __future__ import annotations

import json
import logging
import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kata.errors import KataError
from kata.log_fields import FieldsFormatter

if TYPE_CHECKING:
    from kata.shim.params import ShimParams

log = logging.getLogger(__name__)

_PLAIN = re.compile(r"[\w.-]+", re.ASCII)
_LEVELS = {"WARNING": "warning", "CRITICAL": "fatal"}


class FifoHandler(logging.Handler):
    """Writes lines to a FIFO and never blocks: a log that nobody reads must not stop a sandbox.

    It is opened for reading as well, so that it stays usable while containerd restarts.

    Args:
        path: of the FIFO.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or lose it."""
        try:
            os.write(self._fd, self.format(record).encode(errors="replace") + b"\n")
        except OSError:
            pass  # full: the line is lost, the sandbox is not


class LogfmtFormatter(FieldsFormatter):
    """As containerd's own shims write them, with the module as source."""

    def __init__(self, sandbox_id: str, name: str = "containerd-shim-v2") -> None:
        super().__init__(name, sandbox_id)

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message contains."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        fields = self.fields(record)
        level = _LEVELS.get(record.levelname, record.levelname.lower())
        head = f'time="{time}" level={level} msg={json.dumps(fields.pop("msg"))}'
        del fields["level"]
        return " ".join([head, *(f"{key}={_word(value)}" for key, value in fields.items()), f"source={record.name}"])


def _word(value: str) -> str:
    # An id comes from containerd, and has not been checked yet.
    return value if _PLAIN.fullmatch(value) else json.dumps(value)


def setup_logging(params: ShimParams) -> None:
    """Send this process's log to containerd; in a bundle without its FIFO (made by hand) nothing is logged.

    Neither is anything if the FIFO cannot be opened: that must not stop a sandbox.
    """
    path = os.path.join(params.bundle, "log")
    root = logging.getLogger()
    # A process that was in standby had another log until now.
    root.handlers.clear()
    root.setLevel(logging.DEBUG if params.debug else logging.INFO)
    handler: logging.Handler
    try:
        handler = FifoHandler(path)
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(LogfmtFormatter(params.sandbox_id))
    root.addHandler(handler)


def tell_failure(params: ShimParams, error: BaseException) -> None:
    """Log why the shim of a sandbox ends; where it failed, its log may not have been set up yet."""
    setup_logging(params)
    expected = isinstance(error, KataError)
    hint = f" ({error.hint})" if isinstance(error, KataError) and error.hint else ""
    log.critical(
        "the shim of sandbox %s failed: %s%s",
        params.sandbox_id,
        error if expected else type(error).__name__,
        hint,
        exc_info=None if expected else error,
    )
