"""Runs targets under libFuzzer (atheris), in processes of so many inputs each, and goes on where a run was stopped.

A directory of work has for each target: `corpus`, what was found to reach something new; `findings`, inputs that must
not do what they do, each with the traceback beside it; and `done`, how many inputs it has had.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import atheris  # type: ignore[import-untyped]

from tests.fuzz import mutate
from tests.fuzz.target import MAX_INPUT, TARGETS, Target, check

MODULES = ("tests.fuzz.of_guest", "tests.fuzz.of_agent", "tests.fuzz.of_host", "tests.fuzz.of_image")
#: Inputs of one process at most: what a process that is killed has done is not counted.
CHUNK = 25_000
#: Bytes of memory that a target may have besides what the process has at its start.
MAX_MEMORY = 512 << 20
#: A hang outside of Python, in seconds; in it, a target has `MAX_CPU_S`.
_HANG_S = 600
#: Processes of a target that ended with a finding, before it is left alone: what its corpus has breaks each.
_MAX_FAILURES = 3
_POLL_S = 0.05
_CRASH = "crash-input"

_PROGRESS = re.compile(rb"^#(\d+)\s+(?:\S+)\s+cov: (\d+) ft: (\d+) corp: (\d+)/", re.MULTILINE)


@dataclass
class Progress:
    """What a target has had.

    Attributes:
        inputs: how many.
        edges: of the project's code that they have reached.
        corpus: inputs that are kept, since each reached something new.
        seconds: CPU seconds.
        findings: names of files.
        failures: processes that ended with one.
    """

    inputs: int = 0
    edges: int = 0
    corpus: int = 0
    seconds: float = 0.0
    findings: tuple[str, ...] = ()
    failures: int = 0


def load() -> dict[str, Target]:
    """All targets, with the project's code instrumented, which takes seconds."""
    with _quiet(), atheris.instrument_imports(include=["kata"], exclude=["kata.protocols"]):
        for name in MODULES:
            importlib.import_module(name)
    return TARGETS


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on standard error: atheris writes a line for each module."""
    before = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nothing)


def shares(targets: Iterable[Target], inputs: int) -> dict[str, int]:
    """How many of the inputs each target gets."""
    chosen = list(targets)
    whole = sum(one.share for one in chosen)
    return {one.name: -(-inputs * one.share // whole) for one in chosen}


class Campaign:
    """Fuzzes targets, a few processes at a time.

    Args:
        work: the directory.
        jobs: processes.
        seed: of what is random, for a run that is the same each time; 0 for another one each time.
    """

    def __init__(self, work: Path, *, jobs: int, seed: int = 0) -> None:
        self._work = work
        self._jobs = jobs
        self._seed = seed
        self._running: dict[int, tuple[Target, Path]] = {}

    def run(self, wanted: dict[Target, int]) -> dict[str, Progress]:
        """Give each target as many inputs as are wanted, those that it has had before included."""
        found = {one.name: self._read(one) for one in wanted}
        with tempfile.TemporaryDirectory(prefix="kata-fuzz-", dir="/dev/shm") as scratch:
            try:
                while True:
                    busy = {one.name for one, _ in self._running.values()}
                    waiting = [
                        one
                        for one, inputs in wanted.items()
                        if one.name not in busy
                        and found[one.name].inputs < inputs
                        and found[one.name].failures < _MAX_FAILURES
                    ]
                    waiting.sort(key=lambda one: found[one.name].inputs / wanted[one])
                    for one in waiting[: self._jobs - len(self._running)]:
                        left = wanted[one] - found[one.name].inputs
                        self._begin(one, min(CHUNK, left), found[one.name].inputs, scratch)
                    if not self._running:
                        return found
                    self._reap(found)
            finally:
                for pid in self._running:
                    os.kill(pid, 9)
                    os.waitpid(pid, 0)

    def _directory(self, one: Target, name: str) -> Path:
        path = self._work / one.name / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _begin(self, one: Target, inputs: int, before: int, scratch: str) -> None:
        log = self._work / one.name / "log"
        corpus, findings = self._directory(one, "corpus"), self._directory(one, "findings")
        arguments = [
            one.name,
            f"-runs={inputs}",
            f"-seed={self._seed + before + 1 if self._seed else 0}",
            f"-max_len={MAX_INPUT}",
            f"-timeout={_HANG_S}",
            "-rss_limit_mb=0",
            f"-artifact_prefix={findings}/",
            str(corpus),
            str(one.seeds),
        ]
        pid = os.fork()
        if pid:
            self._running[pid] = one, log
            return
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            tempfile.tempdir = scratch
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MAX_MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            mutator = {"custom_mutator": _mutator} if one.is_document else {}
            atheris.Setup(arguments, functools.partial(_once, one, findings), **mutator)
            atheris.Fuzz()
        except BaseException:
            # Not of a target, whose errors end the process elsewhere.
            traceback.print_exc()
        finally:
            os._exit(2)

    def _reap(self, found: dict[str, Progress]) -> None:
        while True:
            for pid in list(self._running):
                ended, status, usage = os.wait4(pid, os.WNOHANG)
                if ended:
                    one, log = self._running.pop(pid)
                    self._count(one, log.read_bytes(), status, usage.ru_utime + usage.ru_stime, found[one.name])
                    return
            time.sleep(_POLL_S)

    def _count(self, one: Target, said: bytes, status: int, seconds: float, progress: Progress) -> None:
        reached = _PROGRESS.findall(said)
        if reached:
            progress.inputs += int(reached[-1][0])
            progress.edges = max(progress.edges, int(reached[-1][1]))
            progress.corpus = int(reached[-1][3])
        progress.seconds += seconds
        if status or not reached:
            progress.failures += 1
            self._keep(one, said + b"\nit ended with status %d\n" % os.waitstatus_to_exitcode(status), progress)
        path = self._directory(one, "") / "done"
        path.write_text(json.dumps(asdict(progress)))

    def _keep(self, one: Target, said: bytes, progress: Progress) -> None:
        """Keep what a process ended with, unless the same is there."""
        trace = said[said.find(b"=== Uncaught") :] if b"=== Uncaught" in said else said[-4000:]
        # Where it was raised tells findings apart.
        places = re.findall(rb'File "[^"]*/src/kata/([^"]*)", line (\d+)', trace)
        place = b"-".join(places[-1]).decode().replace("/", ".") if places else "outside"
        kind = re.search(rb"exception: ===\s+(?:\w+\.)*(\w+)", trace)
        name = f"{place}-{kind[1].decode() if kind else 'end'}"
        findings = self._directory(one, "findings")
        for path in findings.iterdir():
            if path.name.startswith(("crash-", "timeout-", "oom-", "leak-")):
                path.rename(findings / name) if name not in progress.findings else path.unlink()
        if name not in progress.findings:
            (findings / f"{name}.txt").write_bytes(trace[:16384])
            progress.findings += (name,)

    def _read(self, one: Target) -> Progress:
        try:
            progress = Progress(**json.loads((self._work / one.name / "done").read_bytes()))
        except (OSError, ValueError):
            return Progress()
        progress.findings = tuple(progress.findings)
        return progress


def _once(one: Target, findings: Path, data: bytes) -> None:
    try:
        check(one, data)
    except BaseException:
        # libFuzzer would write it at the process's end by exit(3), which would end what the parent has as well.
        (findings / _CRASH).write_bytes(data)
        raise


def _mutator(data: bytes, most: int, seed: int) -> bytes:
    return mutate.document(data, most, seed, atheris.Mutate)


def report(found: dict[str, Progress], targets: dict[str, Target]) -> str:
    """A table in Markdown."""
    lines = [
        "| target | what | inputs | edges | kept | inputs per CPU second | findings |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        rate = one.inputs / one.seconds if one.seconds else 0
        lines.append(
            f"| {name} | {targets[name].text} | {one.inputs:,} | {one.edges} | {one.corpus} | {rate:,.0f} "
            f"| {', '.join(one.findings) or '-'} |"
        )
    inputs, seconds = sum(one.inputs for one in found.values()), sum(one.seconds for one in found.values())
    lines.append(
        f"\n{inputs:,} inputs in {seconds:,.0f} CPU seconds, {sum(len(o.findings) for o in found.values())} findings"
    )
    return "\n".join(lines) + "\n"


if sys.flags.optimize:
    raise RuntimeError("assertions are part of the targets")
