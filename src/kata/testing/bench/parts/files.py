"""Files in a container's root file system, by scripts for a shell in it that stays: an exec for each would cost more
than what is measured."""

from __future__ import annotations

import select
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from kata.errors import DeadlineExceeded, Internal
from kata.testing.bench.figures import alternate, timed
from kata.testing.bench.stage import Stage

_MEGABYTES = 200
_FILES = 5000
_TIMEOUT_S = 300.0
#: Each run takes seconds, with many small files a minute.
_MAX_RUNS, _MAX_SLOW_RUNS = 3, 2

_CREATE = f"mkdir /many; i=0; while [ $i -lt {_FILES} ]; do echo $i >/many/$i || exit 1; i=$((i+1)); done"
_STAT = f"[ $(find /many -type f -size -9 | wc -l) = {_FILES} ]"
_READ = f"[ $(find /many -type f -exec cat {{}} + | wc -l) = {_FILES} ]"
#: With what the container wrote on its way to the disk, not in the guest's memory.
_WRITE_BIG = f"dd if=/dev/zero of=/big bs=1000000 count={_MEGABYTES} conv=fsync 2>/dev/null"
_READ_BIG = "dd if=/big of=/dev/null bs=1000000 2>/dev/null"


class Shell:
    """A shell in a container that takes one command after the other."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def run(self, script: str) -> None:
        """Run a script to its end.

        Raises:
            Internal: it failed.
            DeadlineExceeded: it takes too long.
        """
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"( {script} ); echo $?\n".encode())
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], _TIMEOUT_S)[0]:
            raise DeadlineExceeded(f"no end after {_TIMEOUT_S:.0f} s of: {script}")
        if (said := self._process.stdout.readline()) != b"0\n":
            raise Internal(f"status {said.decode(errors='replace').strip() or 'unknown'} of: {script}")

    def seconds(self, script: str) -> float:
        """Seconds that a script takes, as seen from the host."""
        return timed(lambda: self.run(script))


def measure(stage: Stage) -> None:
    with ExitStack() as stack:
        shells = {name: stack.enter_context(_shell(stage, name)) for name in stage.contenders}

        def repeated(script: str, most: int, *, warm_up: bool = True) -> dict[str, tuple[float, ...]]:
            actions = {name: partial(shell.seconds, script) for name, shell in shells.items()}
            return alternate(min(stage.runs, most), actions, warm_up=warm_up)

        for what, script in (("write", _WRITE_BIG), ("read", _READ_BIG)):
            took = repeated(script, _MAX_RUNS)
            rates = {name: tuple(_MEGABYTES / seconds for seconds in values) for name, values in took.items()}
            stage.record(f"{what} {_MEGABYTES} MB", "MB/s", rates)
        # Once: it takes long, and what follows needs one set of files.
        stage.record(
            f"create {_FILES:,} files", "s", {name: (shell.seconds(_CREATE),) for name, shell in shells.items()}
        )
        for what, script in (("stat", _STAT), ("read", _READ)):
            stage.record(f"{what} {_FILES:,} files", "s", repeated(script, _MAX_SLOW_RUNS, warm_up=False))


@contextmanager
def _shell(stage: Stage, contender: str) -> Iterator[Shell]:
    with stage.running(contender) as container:
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
