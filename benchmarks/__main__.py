"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from benchmarks import page, text
from benchmarks.contenders import OPTIONAL, usable
from benchmarks.figures import ordered
from benchmarks.machine import machine
from benchmarks.parts import PARTS, Part
from benchmarks.report import Report, from_json, to_json
from benchmarks.stage import Stage
from kata.errors import KataError
from tests.support.containerd import PrivateContainerd
from tests.support.images import BUSYBOX, busybox_archive

_WIDTH = 120
_FULL_SANDBOXES = 100
_PART_SANDBOXES = 20


def measure(parts: Sequence[str], runs: int, sandboxes: int, console: Console) -> Report:
    """Run parts one after the other, and return the report; a part that fails does not stop the others.

    Args:
        parts: names, in order.
        runs: counted runs of each contender.
        sandboxes: at most so many at a time.
        console: for progress.

    Raises:
        KataError: nothing can be measured.
    """
    begin = time.monotonic()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    described = machine()  # first, because it fails early where nothing can be measured
    failures: dict[str, str] = {}
    with TemporaryDirectory(prefix="kata-bench-") as scratch, PrivateContainerd() as containerd:
        containerd.import_image(busybox_archive(Path(scratch) / "busybox.tar", name=BUSYBOX))
        contenders, complaints = usable(containerd)
        failures |= {name: said for name, said in complaints.items() if name not in OPTIONAL}
        notes = tuple(f"{name} {said}" for name, said in complaints.items() if name in OPTIONAL)
        for name, said in complaints.items():
            console.print(f"{name} {said}", markup=False)
        stage = Stage(containerd, contenders, runs, sandboxes, Path(scratch))
        failures |= run_parts(stage, parts, PARTS, console)
    sentences = {name: PARTS[name].sentence for name in parts}
    seconds = round(time.monotonic() - begin, 1)
    return Report(date, described, sentences, ordered(stage.figures), failures, notes, seconds)


def run_parts(stage: Stage, names: Sequence[str], parts: Mapping[str, Part], console: Console) -> dict[str, str]:
    """Run parts on a stage; return what failed and why. Figures that a part recorded before it failed are kept.

    Args:
        stage: gets the figures.
        names: parts to run, in order.
        parts: all parts.
        console: for progress.
    """
    failures: dict[str, str] = {}
    for name in names:
        stage.part = name
        begin = time.monotonic()
        try:
            parts[name].run(stage)
        except Exception as error:  # any failure of one part must not stop the others
            failures[name] = error.message if isinstance(error, KataError) else repr(error)
            console.print(f"{name} failed: {failures[name]}", markup=False)
        console.print(f"{name} took {time.monotonic() - begin:.0f} s", markup=False)
    return failures


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure sandboxes side by side with runc and with bare QEMU.",
        epilog="parts: " + " ".join(f"{name}: {part.sentence}" for name, part in PARTS.items()),
    )
    made.add_argument("--only", action="append", choices=tuple(PARTS), help="measure only this part; may be repeated")
    made.add_argument("--runs", type=_positive, default=5, help="counted runs of each contender (default 5)")
    made.add_argument(
        "--sandboxes",
        type=_positive,
        help=f"at most this many sandboxes at a time (default {_FULL_SANDBOXES}, with --only {_PART_SANDBOXES})",
    )
    made.add_argument("--json", type=Path, default=Path("results/bench.json"), help="where to write the figures")
    made.add_argument("--html", type=Path, default=Path("results/bench.html"), help="where to write the page")
    made.add_argument(
        "--markdown", type=Path, metavar="JSON", help="measure nothing, print a written report as Markdown"
    )
    return made


def _positive(word: str) -> int:
    value = int(word)
    if value < 1:
        raise ValueError(word)
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write a report, or print a written one; return the exit status."""
    options = parser().parse_args(arguments)
    # A file or a pipe has no width of its own.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    if options.markdown:
        try:
            sys.stdout.write(text.markdown(from_json(options.markdown.read_text(encoding="utf-8"))))
        except (KataError, OSError) as error:
            console.print(f"{options.markdown}: {error}", markup=False)
            return 1
        return 0
    parts = [name for name, part in PARTS.items() if (name in options.only if options.only else not part.by_name_only)]
    sandboxes = options.sandboxes or (_PART_SANDBOXES if options.only else _FULL_SANDBOXES)
    try:
        report = measure(parts, options.runs, sandboxes, console)
    except KataError as error:
        console.print(f"nothing can be measured: {error}", markup=False)
        return 1
    console.print(text.table(report))
    for path, content in ((options.json, to_json(report)), (options.html, page.page(report))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        console.print(f"written to {path}", markup=False)
    for name, why in report.failures.items():
        console.print(f"failed: {name}: {why}", markup=False)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
