"""A target: bytes go into functions of the project, which return a value or refuse by an error that they declare."""

from __future__ import annotations

import functools
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kata.errors import KataError

#: Seeds: a directory for each target. A file that is named after what it broke once is there for good.
CORPUS = Path(__file__).parent / "corpus"
#: CPU seconds for one input; the functions take microseconds, and a few milliseconds for the largest of them.
MAX_CPU_S = 2.0
#: Bytes of an input. What is larger is refused by size before it is parsed, which has tests of its own.
MAX_INPUT = 8192
_MAX_MESSAGE = 8192

Run = Callable[[bytes], object]


class Slow(Exception):
    """An input took longer than MAX_CPU_S."""


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Attributes:
        name: of the target.
        run: called with an input; what it returns does not matter.
        refusals: errors by which it may refuse one.
        is_document: whether inputs are documents (JSON, or written as JSON and turned into TOML), and not bytes.
        share: of the inputs of a run, in comparison with others.
    """

    name: str
    run: Run
    refusals: tuple[type[BaseException], ...]
    is_document: bool
    share: int

    @property
    def seeds(self) -> Path:
        """Its corpus in the repository."""
        return CORPUS / self.name

    @property
    def text(self) -> str:
        """What it is, in a line."""
        return (self.run.__doc__ or "").partition("\n")[0].rstrip(".")


TARGETS: dict[str, Target] = {}


def target(*refusals: type[BaseException], is_document: bool = False, share: int = 4) -> Callable[[Run], Run]:
    """Declare a target, whose name is the function's."""

    def declared(run: Run) -> Run:
        TARGETS[run.__name__] = Target(run.__name__, run, refusals, is_document, share)
        return run

    return declared


def check(one: Target, data: bytes) -> None:
    """Give a target an input. Raises whatever the target must not do."""
    signal.signal(signal.SIGVTALRM, _slow)
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_CPU_S)
    try:
        one.run(data)
    except one.refusals as error:
        if isinstance(error, KataError):
            _look_at(error.message)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _look_at(message: str) -> None:
    """Messages are shown to a person, on one line."""
    assert len(message) <= _MAX_MESSAGE, f"a message of {len(message)} characters"
    assert "\n" not in message, f"a message of several lines: {message!r}"
    assert "\x1b" not in message, f"a control character in a message: {message!r}"


def _slow(*_: object) -> None:
    raise Slow(f"it takes longer than {MAX_CPU_S:g} s")


@functools.cache
def scratch(name: str) -> Path:
    """A directory for what a target has to have in files."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-"))
