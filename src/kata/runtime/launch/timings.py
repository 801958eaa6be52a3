"""Where the time of a start goes: its phases, kept in the sandbox's state directory for as long as it lives.

    <state directory>/timings.json      {"began", "phases": [{"name", "subject", "begin_ms", "length_ms"}, …]}

Phases may overlap. The start of the Python interpreter, before the first line of this project's code, is not included.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from kata.errors import FailedPrecondition, NotFound
from kata.linux import atomic_file
from kata.runtime import tracing

log = logging.getLogger(__name__)

FILE_NAME = "timings.json"
_MAX_SIZE = 1 << 20
#: A sandbox may have any number of containers; of interest is its start.
_MAX_PHASES = 256


@dataclass(frozen=True)
class Phase:
    """One step of a start.

    Attributes:
        name: what was done.
        subject: id of the container that it was done for; "" for the sandbox itself.
        begin_ms: when it began, in milliseconds since the start began.
        length_ms: how long it took; 0 for an instant.
    """

    name: str
    subject: str
    begin_ms: float
    length_ms: float


@dataclass(frozen=True)
class Start:
    """What is known of a sandbox's start.

    Attributes:
        began: when it began, in seconds since 1970.
        phases: in the order of their beginnings.
    """

    began: float
    phases: tuple[Phase, ...]


class Timings:
    """The phases of one sandbox, as they happen. They are spans, too, if it is traced.

    Args:
        directory: the sandbox's state directory.
        begun: when the start began, by `time.monotonic`.
    """

    def __init__(self, directory: Path, begun: float) -> None:
        self._path = directory / FILE_NAME
        self._begun = begun
        self._phases: list[Phase] = []

    @contextmanager
    def phase(self, name: str, subject: str = "") -> Iterator[None]:
        """Record how long the body takes, also when it fails."""
        begin = time.monotonic()
        try:
            with tracing.span(name, subject):
                yield
        finally:
            self._append(name, begin, subject)

    def moment(self, name: str, subject: str = "") -> None:
        """Record that something happens now."""
        self._append(name, time.monotonic(), subject)
        self.write()

    def add(self, name: str, begin: float, subject: str = "") -> None:
        """Record a phase that ends now."""
        tracing.record(name, begin, subject)
        self._append(name, begin, subject)

    def _append(self, name: str, begin: float, subject: str) -> None:
        if len(self._phases) < _MAX_PHASES:
            length = time.monotonic() - begin
            phase = Phase(name, subject, round((begin - self._begun) * 1000, 1), round(length * 1000, 1))
            self._phases.append(phase)

    def write(self) -> None:
        """Write the file, renamed into place. Nothing depends on it, so errors are only logged."""
        try:
            began = round(time.time() - time.monotonic() + self._begun, 4)
            content = {"began": began, "phases": [asdict(phase) for phase in self._phases]}
            atomic_file.write(self._path, json.dumps(content))
        except OSError as error:
            log.debug("%s: %s", self._path, error.strerror)


def read(directory: Path) -> Start:
    """The start of the sandbox of this state directory.

    Raises:
        NotFound: there is no such sandbox, or it has not started anything yet.
        FailedPrecondition: the file is not what a sandbox writes.
    """
    path = directory / FILE_NAME
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_SIZE))
        began = float(content["began"])
        phases = [
            Phase(str(entry["name"]), str(entry["subject"]), float(entry["begin_ms"]), float(entry["length_ms"]))
            for entry in content["phases"]
        ]
    except FileNotFoundError:
        raise NotFound(
            f"sandbox {directory.name} does not exist, or has not started anything yet",
            hint="`kata list` shows all sandboxes",
        ) from None
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FailedPrecondition(f"{path} is corrupt: {error}") from None
    return Start(began, tuple(sorted(phases, key=lambda phase: phase.begin_ms)))
