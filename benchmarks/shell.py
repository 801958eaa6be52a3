"""A shell in a container that runs one script after the other: an exec for each would take longer than a script."""

from __future__ import annotations

import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.figures import timed
from benchmarks.stage import Stage
from kata.errors import DeadlineExceeded, Internal

_TIMEOUT_S = 300.0


class Shell:
    """A shell in a container that runs one script after the other."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def run(self, script: str) -> None:
        """Run a script to its end.

        Raises:
            Internal: it failed.
            DeadlineExceeded: it did not end in time.
        """
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{{ {script}; }}; echo $?\n".encode())
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], _TIMEOUT_S)[0]:
            raise DeadlineExceeded(f"script did not end within {_TIMEOUT_S:.0f} s: {script}")
        if (said := self._process.stdout.readline()) != b"0\n":
            raise Internal(f"script ended with status {said.decode(errors='replace').strip() or 'unknown'}: {script}")

    def seconds(self, script: str) -> float:
        """Return the seconds that a script takes, by the host's clock."""
        return timed(lambda: self.run(script))


@contextmanager
def shell_in(stage: Stage, container: str) -> Iterator[Shell]:
    """A shell in a running container, ended with the block."""
    process = subprocess.Popen(
        stage.containerd.ctr_command("task", "exec", "--exec-id", "shell", container, "sh"),
        env=stage.containerd.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Shell(process)
    finally:
        process.kill()
        process.communicate()
