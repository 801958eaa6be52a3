"""What programs meet on files, as one table: each way that files can come to a container, beside runc.

    python -m tools.file_table [WAY...]

needs root, containerd, runc and the guest image, and takes about a minute for each way. The tests hold what it prints:
tests/integration/containerd/test_file_*.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.markup import escape

from tests.support.containerd import PrivateContainerd
from tests.support.fileways import RUNC, Files
from tests.support.packages import python_archive

WAYS = (RUNC, "layers, disk", "virtio-fs", "virtio-9p")
IMAGE = "docker.io/library/python:table"
#: What is tried in each place: the program, and whether a way that only concerns roots has it.
_RUNS = {
    "root": ("filecheck", "fileissues", "filecases"),
    "volume": ("filecheck", "fileissues", "filecases"),
    "two mounts": ("filecheck",),
    "two containers": ("filecheck", "filecases"),
    "two sandboxes": ("filecheck",),
    "host beside guest": ("filecheck",),
}
#: Rounds of what has ended servers.
_ROUNDS = 100


def main(*ways: str) -> int:
    """Try each way and print the table in Markdown."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    console = Console(stderr=True, highlight=False)
    with TemporaryDirectory(prefix="kata-files-") as scratch, PrivateContainerd() as containerd:
        containerd.import_image(python_archive(Path(scratch) / "python.tar", IMAGE))
        for number, way in enumerate(ways or WAYS):
            for place, programs in _RUNS.items():
                if way.startswith("layers") and place != "root":
                    continue
                for program in programs:
                    directory = Path(scratch) / f"{number}-{place}-{program}"
                    directory.mkdir()
                    files = Files(containerd, IMAGE, way, directory)
                    console.print(f"{way}: {program} in {place}")
                    found.setdefault(way, {}).setdefault(place, {}).update(_tried(files, place, program))
            if not way.startswith("layers"):
                directory = Path(scratch) / f"{number}-stress"
                directory.mkdir()
                wrong = Files(containerd, IMAGE, way, directory).run("filestress", ("/a/files", str(_ROUNDS)))
                found[way]["volume"][f"{_ROUNDS} rounds of what has ended servers"] = wrong or True
    Console(width=200, highlight=False, soft_wrap=True).print(escape(_table(found)))
    return 0


def _tried(files: Files, place: str, program: str) -> dict[str, Any]:
    """Each check or case, and true or what happened instead."""
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
    lines += ["", f"| what differs | {' | '.join(found)} |", f"|---{'|---' * len(found)}|"]
    for place in _RUNS:
        names = dict.fromkeys(name for way in found for name in found[way].get(place, {}))
        for name in names:
            cells = [found[way].get(place, {}).get(name, "") for way in found]
            if any(cell not in (True, "") for cell in cells):
                lines.append(f"| {place}: {name} | {' | '.join('yes' if c is True else str(c) for c in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
