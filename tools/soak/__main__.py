"""The command line of `make soak`."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from kata.errors import KataError
from kata.linux import mount
from kata.linux.namespaces import CLONE_NEWNS, unshare
from tools.soak import report
from tools.soak.figures import Outcome
from tools.soak.plan import plan
from tools.soak.report import Soak
from tools.soak.stage import stage

_HOUR = 60.0
_WIDTH = 140
#: Not on /var/tmp, where the small disk will be.
_SCRATCH = "/var/lib/kata"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m tools.soak",
        description="Let pods live, cut them short by kill -9 and remove them, on a host short of memory and disk.",
    )
    default = float(os.environ.get("KATA_SOAK_MINUTES") or _HOUR)
    made.add_argument("--minutes", type=float, default=default, help="how long (default: KATA_SOAK_MINUTES, or 60)")
    made.add_argument("--seed", type=int, help="of an earlier soak, to do the same (default: another each time)")
    made.add_argument("--first", type=int, default=1, help="the number of the first round (default 1)")
    made.add_argument("--report", type=Path, default=Path("results/soak"), help="a directory (default results/soak)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run rounds until the time is over, and write the report after each; return the exit status."""
    options = parser().parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    begun, begin = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    outcomes: list[Outcome] = []
    problems: list[str] = []
    stopped = ""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console.print(f"soak: seed {seed}, {options.minutes:g} minutes; the report is in {options.report}", markup=False)

    def written() -> Soak:
        told = Soak(seed, options.minutes, begun, stopped, tuple(outcomes), tuple(problems))
        options.report.mkdir(parents=True, exist_ok=True)
        (options.report / report.DRAWING).write_text(report.drawing(told), encoding="utf-8")
        (options.report / "soak.md").write_text(report.markdown(told), encoding="utf-8")
        return told

    try:
        unshare(CLONE_NEWNS)
        mount.set_propagation("/", mount.MS_REC | mount.MS_PRIVATE)
        with TemporaryDirectory(prefix="soak-", dir=_SCRATCH) as scratch, stage(Path(scratch), seed) as on:
            number = options.first
            while time.monotonic() - begin < options.minutes * 60:
                outcomes.append(on.run(plan(seed, number), begin))
                _tell(console, outcomes[-1])
                written()
                number += 1
    except KeyboardInterrupt:
        stopped = "by a signal"
    except (KataError, OSError, AssertionError) as error:
        problems.append(error.message if isinstance(error, KataError) else str(error))
        stopped = "by a failure"
    finally:
        told = written()
    for failure in told.failures:
        console.print(f"failed: {failure}", markup=False)
    console.print(f"{len(outcomes)} rounds, {told.kills} kills, {len(told.failures)} failures", markup=False)
    return 1 if told.failures or not outcomes else 0


def _tell(console: Console, outcome: Outcome) -> None:
    console.print(
        f"{outcome.seconds:6.0f} s  round {outcome.number}: {outcome.kills} kills, short of {outcome.pressure}, "
        f"{len(outcome.ended)} pods ended early, {len(outcome.problems)} problems",
        markup=False,
    )
    for problem in outcome.problems:
        console.print(f"    {problem}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
