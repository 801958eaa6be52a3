"""The last events of a sandbox, in its state directory: what `kata events` shows of the time before it was called."""

from __future__ import annotations

import json
from pathlib import Path

from kata.runtime.hypervisor.console import RingFile
from kata.runtime.sandbox.events import Event

FILE_NAME = "events.log"
#: Bytes; an event has about a hundred.
_LIMIT = 64 << 10


class EventLog:
    """Writes an event a line, as JSON. Nothing depends on it, so what cannot be written is dropped.

    Args:
        directory: the state directory.
    """

    def __init__(self, directory: str) -> None:
        self._path = Path(directory, FILE_NAME)
        self._ring: RingFile | None = None

    def write(self, event: Event) -> None:
        """Append one."""
        try:
            self._ring = self._ring or RingFile(self._path, _LIMIT)
        except OSError:
            return
        self._ring.write(json.dumps(event.describe()).encode() + b"\n")

    def close(self) -> None:
        """Close the file, which stays."""
        if self._ring:
            self._ring.close()
