"""Standard output of a container, through containerd's FIFO and `ctr` into a pipe.

The clock starts at the first byte and stops at the last, so the start is not included.
"""

from __future__ import annotations

import subprocess
import time
from functools import partial

from benchmarks.figures import alternate
from benchmarks.stage import Stage
from kata.errors import Internal
from tests.support.containerd import unique_id

_MEGABYTES = 200
_BYTES = _MEGABYTES * 1_000_000
_PIECE = 1 << 20
#: Each run takes seconds.
_MAX_RUNS = 3


def measure(stage: Stage) -> None:
    actions = {name: partial(_rate, stage, options) for name, options in stage.contenders.items()}
    stage.record("standard output", "MB/s", alternate(min(stage.runs, _MAX_RUNS), actions))


def _rate(stage: Stage, options: tuple[str, ...]) -> float:
    container = unique_id("bench")
    script = f"dd if=/dev/zero bs=1000000 count={_MEGABYTES} 2>/dev/null"
    process = subprocess.Popen(
        stage.command(options, container, "sh", "-c", script, flags=("--rm",)),
        env=stage.containerd.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    try:
        assert process.stdout
        first = len(process.stdout.read(_PIECE))
        begin = time.perf_counter()
        rest = 0
        while piece := process.stdout.read(_PIECE):
            rest += len(piece)
            if first + rest >= _BYTES:
                break
        seconds = time.perf_counter() - begin
        _, said = process.communicate(timeout=60)
        if first + rest != _BYTES or process.returncode != 0:
            raise Internal(
                f"ctr run ended with status {process.returncode} after {first + rest} of {_BYTES} bytes: "
                f"{said.decode()[-500:]}"
            )
        return rest / 1_000_000 / seconds
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
            stage.remove(container)
