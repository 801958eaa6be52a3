"""The stage that the parts measure on: a private containerd with an image, and the figures they leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import Figure, timed
from tests.support.containerd import PrivateContainerd, unique_id
from tests.support.images import BUSYBOX

_FOREVER = ("sleep", "86400")


@dataclass
class Stage:
    """What a part gets.

    Attributes:
        contenders: name to options of `ctr run`, those that run here.
        runs: counted runs of each contender.
        sandboxes: no more than so many at a time.
        directory: for files of the parts.
    """

    containerd: PrivateContainerd
    contenders: Mapping[str, tuple[str, ...]]
    runs: int
    sandboxes: int
    directory: Path
    figures: list[Figure] = field(default_factory=list)
    part: str = ""

    def record(self, name: str, unit: str, measured: Mapping[str, tuple[float, ...]], count: int = 0) -> None:
        """Keep what was measured, by contender."""
        self.figures += [
            Figure(self.part, name, contender, unit, values, count) for contender, values in measured.items()
        ]

    def command(
        self, options: tuple[str, ...], container: str, *command: str, flags: tuple[str, ...] = ()
    ) -> list[str]:
        """The command line of a `ctr run`."""
        return self.containerd.ctr_command("run", *flags, *options, BUSYBOX, container, *command)

    def run_true(self, options: tuple[str, ...]) -> float:
        """Seconds that `ctr run --rm` of `true` takes."""
        container = unique_id("bench")
        return timed(lambda: self.containerd.ctr("run", "--rm", *options, BUSYBOX, container, "true", timeout=180))

    def launch(self, contender: str, container: str) -> None:
        """Start a container that does nothing."""
        self.containerd.ctr("run", "-d", *self.contenders[contender], BUSYBOX, container, *_FOREVER)

    def remove(self, container: str) -> None:
        """End and remove a container, whatever its state."""
        self.containerd.ctr("task", "rm", "-f", container, check=False)
        self.containerd.ctr("container", "rm", container, check=False)

    @contextmanager
    def running(self, contender: str) -> Iterator[str]:
        """The id of a container that does nothing, removed afterwards."""
        container = unique_id("bench")
        try:
            self.launch(contender, container)
            yield container
        finally:
            self.remove(container)
