"""The shim's log: logfmt lines into the bundle's `log` FIFO, which containerd copies into its own log."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kata.errors import KataError
from kata.log_fields import FieldsFormatter

if TYPE_CHECKING:
    from kata.shim.params import ShimParams

log = logging.getLogger(__name__)

#: The component, as Kata calls it.
SHIM_NAME = "containerd-shim-v2"
#: In the state directory.
RING_NAME = "shim.log"

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


class RingHandler(logging.Handler):
    """Keeps the end of the log in a file of the sandbox's state directory, where `kata logs` finds it.

    Args:
        directory: the state directory.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, directory: str) -> None:
        # Imported here, as `start` has no need of it.
        from kata.runtime.hypervisor.console import RingFile

        super().__init__()
        self._ring = RingFile(Path(directory, RING_NAME))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self._ring.write(self.format(record).encode(errors="replace") + b"\n")

    def close(self) -> None:
        """Close the file, which stays."""
        self._ring.close()
        super().close()


class LogfmtFormatter(FieldsFormatter):
    """As containerd's own shims write them, with the module as source."""

    def __init__(self, sandbox_id: str, name: str = SHIM_NAME) -> None:
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


def keep_log(directory: str, sandbox_id: str, name: str = SHIM_NAME) -> Callable[[], None]:
    """Keep the end of this process's log in the state directory of its sandbox, too; the function returned ends that.

    Args:
        directory: the state directory, which this process has claimed.
        sandbox_id: of the records.
        name: of the component.
    """
    try:
        handler = RingHandler(directory)
    except OSError as error:
        log.debug("the log is not kept in %s: %s", directory, error.strerror)
        return lambda: None
    handler.setFormatter(LogfmtFormatter(sandbox_id, name))
    root = logging.getLogger()
    root.addHandler(handler)

    def end() -> None:
        root.removeHandler(handler)
        handler.close()

    return end


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
