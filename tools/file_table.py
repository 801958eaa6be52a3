"""What programs meet on files, as one table, and the speed of small ones: each way that files can come to a container.

    python -m tools.file_table FILE [WAY...]

keeps in FILE what each program has found, so that it goes on where it was interrupted. It needs root, containerd, runc
and the guest image, and takes a quarter of an hour for all ways. What a program did not tell is tried again by the next
run; the exit status is 1 then. The tests hold what it prints: tests/integration/containerd/test_file_*.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.markup import escape

from kata.linux import atomic_file
from tests.support.containerd import PrivateContainerd
from tests.support.fileways import RUNC, Files
from tests.support.packages import python_archive

WAYS = (RUNC, "layers, disk", "layers, memory", "layers, host", "virtio-fs", "virtio-9p")
IMAGE = "docker.io/library/python:table"
#: The program whose figures are seconds.
_SPEED = "filespeed"
#: What is tried in each place: the program, and whether a way that only concerns roots has it.
_RUNS = {
    "root": (_SPEED, "filecheck", "fileissues", "filecases"),
    "volume": (_SPEED, "filecheck", "fileissues", "filecases", "filestress"),
    "two mounts": ("filecheck",),
    "two containers": ("filecheck", "filecases"),
    "two sandboxes": ("filecheck",),
    "host beside guest": ("filecheck",),
}
#: Nearly each part of it begins with a symbolic link, which cannot be made there.
_LEFT_OUT = ("layers, host", "filecases")
#: Rounds of what has ended servers.
_ROUNDS = 100
#: Small files whose speed is told, and what is done with them.
_FILES, _STEPS = 1000, ("create", "stat", "read")


def main(kept: str, *ways: str) -> int:
    """Try each way, but what the file says was tried before, and print the tables in Markdown."""
    path = Path(kept)
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    runs = list(_runs(ways or WAYS))
    if left := [run for run in runs if _name(*run) not in told]:
        _try(left, told, path)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    seconds: dict[str, dict[str, dict[str, float]]] = {}
    for way, place, program in runs:
        said = told.get(_name(way, place, program), {})
        if program != _SPEED:
            found.setdefault(way, {}).setdefault(place, {}).update(said)
        elif said:
            seconds.setdefault(place, {})[way] = said
    Console(width=200, highlight=False, soft_wrap=True).print(escape(f"{_table(found)}\n\n{_speeds(seconds)}"))
    return 0 if all(_name(*run) in told for run in runs) else 1


def _name(way: str, place: str, program: str) -> str:
    return f"{way}: {program} in {place}"


def _try(runs: Sequence[tuple[str, str, str]], told: dict[str, Any], path: Path) -> None:
    """Run the programs, and keep what they tell."""
    console = Console(stderr=True, highlight=False)
    with TemporaryDirectory(prefix="kata-files-") as scratch, PrivateContainerd() as containerd:
        containerd.import_image(python_archive(Path(scratch) / "python.tar", IMAGE))
        for number, (way, place, program) in enumerate(runs):
            console.print(f"{time.strftime('%X')} {_name(way, place, program)}")
            directory = Path(scratch) / str(number)
            directory.mkdir()
            try:
                told[_name(way, place, program)] = _tried(Files(containerd, IMAGE, way, directory), place, program)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                console.print(f"[red]it told nothing[/]: {escape(str(error)[-2000:])}")
            else:
                atomic_file.write(path, json.dumps(told).encode())


def _runs(ways: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Way, place and program of each run. The speed of runc is what the others' is compared with."""
    for way in dict.fromkeys((RUNC, *ways)):
        for place, programs in _RUNS.items():
            if place == "root" or not way.startswith("layers"):
                for program in programs:
                    if (way in ways or program == _SPEED) and (way, program) != _LEFT_OUT:
                        yield way, place, program


def _tried(files: Files, place: str, program: str) -> dict[str, Any]:
    """Each check or case, and true or what happened instead."""
    if program in (_SPEED, "filestress"):
        directory = "/srv/files" if place == "root" else "/a/files"
        said = files.run(program, (directory, str(_FILES if program == _SPEED else _ROUNDS)))
        return said if program == _SPEED else {f"{_ROUNDS} rounds of what has ended servers": said or True}
    said = {
        "root": lambda: files.found(program),
        "volume": lambda: files.in_volume(program),
        "two mounts": lambda: files.two_mounts(program),
        "two containers": lambda: files.two_containers(program),
        "two sandboxes": lambda: files.two_sandboxes(program),
        "host beside guest": lambda: files.beside_the_host(program, first=False),
    }[place]()
    if program == "filecases":
        return {f"call: {case}": happened == right or happened for case, (right, happened) in said.items()}
    return said


def _table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """How many are right, by way and place; then each that is not everywhere."""
    lines = [f"| right, of all tried | {' | '.join(found)} |", f"|---{'|---' * len(found)}|"]
    for place in _RUNS:
        counts = []
        for way in found:
            said = found[way].get(place, {})
            counts.append(f"{sum(value is True for value in said.values())} of {len(said)}" if said else "")
        lines.append(f"| {place} | {' | '.join(counts)} |")
    lines += ["", f"| what differs | where | {' | '.join(found)} |", f"|---|---{'|---' * len(found)}|"]
    lines += [f"| {name} | {', '.join(places)} | {' | '.join(cells)} |" for name, places, cells in _differences(found)]
    return "\n".join(lines)


def _differences(found: dict[str, dict[str, dict[str, Any]]]) -> list[tuple[str, list[str], list[str]]]:
    """What is not so somewhere, in which places, and what happens by each way, "" where a way was not tried.

    Places where the same happens are together.
    """
    rows: list[tuple[str, list[str], list[str]]] = []
    for place in _RUNS:
        for name in dict.fromkeys(name for way in found for name in found[way].get(place, {})):
            said = [found[way].get(place, {}).get(name, "") for way in found]
            if all(cell in (True, "") for cell in said):
                continue
            cells = ["yes" if cell is True else str(cell) for cell in said]
            for row_name, places, row in rows:
                if row_name == name and all(a == b or "" in (a, b) for a, b in zip(row, cells, strict=True)):
                    places.append(place)
                    row[:] = [a or b for a, b in zip(row, cells, strict=True)]
                    break
            else:
                rows.append((name, [place], cells))
    return rows


def _speeds(seconds: dict[str, dict[str, dict[str, float]]]) -> str:
    """How often runc's time each way takes, by place."""
    ways = [way for way in seconds.get("root", {}) if way != RUNC]
    header = f"{_FILES:,} files: {' / '.join(_STEPS)} ÷ runc"
    lines = [f"| {header} | {' | '.join(ways)} |", f"|---{'|---' * len(ways)}|"]
    for place, by_way in seconds.items():
        if RUNC not in by_way:
            continue
        cells = [
            " / ".join(f"{by_way[way][step] / by_way[RUNC][step]:.1f}" for step in _STEPS)
            if {way, RUNC} <= set(by_way)
            else ""
            for way in ways
        ]
        lines.append(f"| {place} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
