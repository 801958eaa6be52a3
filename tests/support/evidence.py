"""Logs of what a test runs, which are kept if it fails: containerd's, QEMU's, and those of sandboxes that have ended.

A sandbox removes its state directory when it ends, which is before its test is known to have failed. So a process
beside the tests gives each of its logs a second name, a hard link, and takes that away some minutes later. All of it is
bounded: each file, each test, the tests of a run, the runs.

    python -m tests.support.evidence STATES KEPT
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

PROJECT = Path(__file__).parents[2]
#: Has a directory for each run.
FAILURES = PROJECT / "build/failures"
MAX_FILE = 1 << 20
MAX_TEST = 16 << 20
#: A broken host fails each test in the same way.
MAX_TESTS = 25
_MAX_RUNS = 4

#: Seconds for which logs of a sandbox stay after the last line: longer than a test may take.
_KEPT_S = 330.0
#: Of all sandboxes that have ended: they are in memory.
_MAX_KEPT = 64 << 20
_POLL_S = 0.1
_PRUNE_S = 5.0
_LOG = re.compile(r"[\w-]+\.log(?:\.1)?", re.ASCII)
_ODD = re.compile(r"[^\w.\[\]=-]+", re.ASCII)
_MAX_NAME = 120


class Evidence:
    """The logs of this process's tests.

    Args:
        folder: of this run, where failures go.
        kept: where `watch` keeps the logs of sandboxes; None: nobody does.
        others: ids of sandboxes that begin like this are another worker's.
    """

    def __init__(self, folder: Path, kept: Path | None, others: re.Pattern[str]) -> None:
        self._folder = folder
        self._kept = kept
        self._others = others
        self._followed: dict[Path, int] = {}
        self._ended: list[tuple[str, bytes]] = []
        self._began = time.time()

    def follow(self, path: Path) -> None:
        """From now on the log at this path belongs to what is running."""
        self._followed.setdefault(path, 0)

    def end(self, path: Path) -> None:
        """It is about to be removed."""
        if path in self._followed:
            self._ended.append((path.name, tail(path, self._followed.pop(path))))

    def begin(self) -> None:
        """A test begins: what was logged before is not about it."""
        self._ended.clear()
        self._began = time.time()
        for path in self._followed:
            with suppress(OSError):
                self._followed[path] = path.stat().st_size

    def save(self, test: str, report: str, scratch: Path | None = None, *, sandboxes: bool = True) -> Path | None:
        """Write what there is of a test that has failed; returns the directory, or None if there is no log.

        Args:
            test: its name.
            report: what pytest says.
            scratch: a directory of the test's, with logs perhaps.
            sandboxes: whether it may have any.
        """
        pieces = [*self._ended, *((path.name, tail(path, begin)) for path, begin in self._followed.items())]
        if sandboxes:
            pieces += [(f"sandboxes/{name}", log) for name, log in self._sandboxes()]
        if scratch:
            found = (path for path in sorted(scratch.rglob("*")) if _LOG.fullmatch(path.name) and path.is_file())
            pieces += [(f"scratch/{path.relative_to(scratch)}", tail(path)) for path in found]
        files = bounded({name: log for name, log in numbered(pieces) if log})
        directory = self._folder / _ODD.sub("-", test)[-_MAX_NAME:]
        self._folder.mkdir(parents=True, exist_ok=True)
        if not files or (not directory.exists() and len(os.listdir(self._folder)) >= MAX_TESTS):
            return None
        for name, log in {**files, "report.txt": report.encode(errors="replace")[-MAX_FILE:]}.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(log)
        return directory

    def _sandboxes(self) -> Iterator[tuple[str, bytes]]:
        """Logs of sandboxes that run, or ran since the test began."""
        for directory in sorted(self._kept.iterdir()) if self._kept else ():
            if self._others.match(directory.name):
                continue
            parts: dict[str, list[tuple[float, bytes]]] = {}
            with suppress(FileNotFoundError):  # it has just become too old
                for path in directory.iterdir():
                    status = path.stat()
                    if status.st_nlink > 1 or status.st_mtime >= self._began:
                        parts.setdefault(path.name.partition("@")[0], []).append((status.st_mtime, tail(path)))
            for name, found in parts.items():
                yield f"{directory.name}/{name}", b"".join(log for _, log in sorted(found))[-MAX_FILE:]


def tail(path: Path, begin: int = 0) -> bytes:
    """A file from an offset on, the last `MAX_FILE` bytes of that; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(begin, os.fstat(file.fileno()).st_size - MAX_FILE))
            return file.read(MAX_FILE)
    except OSError:
        return b""


def numbered(pieces: list[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """The second of a name, and those after it, get a number."""
    times: dict[str, int] = {}
    for name, log in pieces:
        times[name] = times.get(name, 0) + 1
        path = Path(name)
        yield (name if times[name] == 1 else str(path.with_name(f"{path.stem}-{times[name]}{path.suffix}"))), log


def bounded(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files, the first ones, that are `MAX_TEST` bytes together."""
    kept, size = {}, 0
    for name, log in files.items():
        size += len(log)
        if size <= MAX_TEST:
            kept[name] = log
    return kept


def new_run(root: Path) -> Path:
    """The directory of a run, which is made with its first failure; of earlier runs the newest stay."""
    for old in sorted(root.iterdir())[: 1 - _MAX_RUNS] if root.is_dir() else ():
        shutil.rmtree(old, ignore_errors=True)
    return root / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"


def watch(states: Path, kept: Path) -> subprocess.Popen[bytes]:
    """Keep the logs of all sandboxes, by a process that ends with this one.

    Args:
        states: where sandboxes have their state directories.
        kept: a directory on the same file system, which exists.
    """
    command = [sys.executable, "-m", "tests.support.evidence", str(states), str(kept)]
    return subprocess.Popen(["setpriv", "--pdeathsig=KILL", "--", *command], cwd=PROJECT, start_new_session=True)


def link(states: Path, kept: Path, seen: dict[str, int]) -> None:
    """Give each log that is new a second name.

    Args:
        states, kept: as for `watch`.
        seen: when each state directory was last changed, for the next call.
    """
    for directory in states.iterdir() if states.is_dir() else ():
        with suppress(OSError):
            status = directory.stat()
            if not stat.S_ISDIR(status.st_mode) or seen.get(directory.name) == status.st_mtime_ns:
                continue
            seen[directory.name] = status.st_mtime_ns
            for path in directory.iterdir():
                if not _LOG.fullmatch(path.name) or path.is_symlink():
                    continue
                # A ring's older half was the newer one before; it is one log to who reads it.
                target = kept / directory.name / f"{path.name.removesuffix('.1')}@{path.stat().st_ino}"
                target.parent.mkdir(exist_ok=True)
                with suppress(FileExistsError):
                    os.link(path, target, follow_symlinks=False)


def prune(kept: Path, now: float) -> None:
    """Remove the logs of sandboxes that ended long ago, and the oldest ones if they are too large.

    Args:
        kept: as for `watch`.
        now: in seconds since 1970.
    """
    ended = []
    for directory in kept.iterdir():
        statuses = [path.stat() for path in directory.iterdir()]
        if all(status.st_nlink == 1 for status in statuses):
            last = max((status.st_mtime for status in statuses), default=0.0)
            ended.append((last, sum(status.st_size for status in statuses), directory))
    size = 0
    for last, bytes_of_it, directory in sorted(ended, reverse=True):
        size += bytes_of_it
        if last < now - _KEPT_S or size > _MAX_KEPT:
            shutil.rmtree(directory, ignore_errors=True)


def main(states: Path, kept: Path) -> None:
    """Link and prune for ever."""
    seen: dict[str, int] = {}
    while True:
        until = time.monotonic() + _PRUNE_S
        while time.monotonic() < until:
            link(states, kept, seen)
            time.sleep(_POLL_S)
        prune(kept, time.time())


#: Of the tests of this process; None: nobody would look, as in a demonstration.
_current: Evidence | None = None


def use(evidence: Evidence) -> None:
    """Have `follow` and `end` tell this one."""
    global _current
    _current = evidence


def follow(path: Path) -> None:
    """As `Evidence.follow`, for what runs programs."""
    if _current:
        _current.follow(path)


def end(path: Path) -> None:
    """As `Evidence.end`."""
    if _current:
        _current.end(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
