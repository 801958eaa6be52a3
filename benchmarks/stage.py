"""The stage on which parts measure: a private containerd with an image, and the figures that they record."""

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
        containerd: runs the containers; it has the image BUSYBOX.
        contenders: options of `ctr run` by name, of those that run here.
        runs: counted runs of each contender.
        sandboxes: at most so many at a time.
        directory: for files of the parts.
        figures: what was recorded.
        part: the name of the part that runs.
        image: that of the containers.
    """

    containerd: PrivateContainerd
    contenders: Mapping[str, tuple[str, ...]]
    runs: int
    sandboxes: int
    directory: Path
    figures: list[Figure] = field(default_factory=list)
    part: str = ""
    image: str = BUSYBOX

    def record(self, name: str, unit: str, measured: Mapping[str, tuple[float, ...]], count: int = 0) -> None:
        """Record measurements.

        Args:
            name: of what was measured.
            unit: of the values.
            measured: the values of each contender.
            count: see `Figure`.
        """
        self.figures += [
            Figure(self.part, name, contender, unit, values, count) for contender, values in measured.items()
        ]

    def configured(self, options: tuple[str, ...], name: str, text: str) -> tuple[str, ...]:
        """Return options of `ctr run` with a configuration of their own, a file `name`.toml of this text."""
        configuration = self.directory / f"{name}.toml"
        configuration.write_text(text, encoding="utf-8")
        return (*options, "--runtime-config-path", str(configuration))

    def command(
        self, options: tuple[str, ...], container: str, *command: str, flags: tuple[str, ...] = ()
    ) -> list[str]:
        """Return the command line of a `ctr run` with the image."""
        return self.containerd.ctr_command("run", *flags, *options, self.image, container, *command)

    def run_true(self, options: tuple[str, ...]) -> float:
        """Return the seconds that `ctr run --rm` of `true` takes."""
        container = unique_id("bench")
        return timed(lambda: self.containerd.ctr("run", "--rm", *options, self.image, container, "true", timeout=180))

    def launch(self, contender: str, container: str) -> None:
        """Start a container that sleeps."""
        self.containerd.ctr("run", "-d", *self.contenders[contender], self.image, container, *_FOREVER)

    def remove(self, container: str) -> None:
        """Kill and remove a container in any state."""
        self.containerd.ctr("task", "rm", "-f", container, check=False)
        self.containerd.ctr("container", "rm", container, check=False)

    @contextmanager
    def running(self, contender: str) -> Iterator[str]:
        """A container that sleeps, removed afterwards; yields its id."""
        container = unique_id("bench")
        try:
            self.launch(contender, container)
            yield container
        finally:
            self.remove(container)
