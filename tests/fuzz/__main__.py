"""`make fuzz`: gives each target its share of a number of inputs, and goes on where it was stopped."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from tests.fuzz import engine
from tests.fuzz.target import check

_INPUTS = 10_000_000


def main() -> int:
    """Run it; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all by default")
    parser.add_argument("--inputs", type=int, default=_INPUTS, help=f"in all, for all targets ({_INPUTS:,})")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--seed", type=int, default=0, help="of what is random; 0: another one each time")
    parser.add_argument("--work", type=Path, default=Path("build/fuzz"), help="directory of corpora and findings")
    parser.add_argument("--input", type=Path, help="give the target this one, to see what becomes of it")
    given = parser.parse_args()
    targets = engine.load()
    if unknown := set(given.targets) - set(targets):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {' '.join(targets)}")
    chosen = {name: targets[name] for name in given.targets or targets}
    if given.input:
        for one in chosen.values():
            check(one, given.input.read_bytes())
        return 0
    # What is running then is ended, and its directory removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    given.work.mkdir(parents=True, exist_ok=True)
    inputs = engine.shares(chosen.values(), given.inputs)
    campaign = engine.Campaign(given.work.resolve(), jobs=given.jobs, seed=given.seed)
    found = campaign.run({one: inputs[name] for name, one in chosen.items()})
    text = engine.report(found, targets)
    (given.work / "report.md").write_text(text)
    sys.stdout.write(text)
    return 1 if any(one.findings for one in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
