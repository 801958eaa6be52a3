"""One part of a report: a program is run, killed at its deadline, and its output freed of secrets."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tomli_w

from kata.bugreport.plan import Part
from kata.bugreport.secrets import redact, redact_toml

_CHUNK = 64 * 1024
#: Of what a program says when it fails, the last lines.
_MAX_WORDS = 4096
#: Seconds for a process to end after SIGKILL. One that the kernel holds is left alone then.
_KILL_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Collected:
    """What was had of a part.

    Attributes:
        part: what was wanted.
        content: without secrets; None if there is nothing.
        removed: how many secrets were taken out.
        problem: what is missing and why, "" if nothing is.
    """

    part: Part
    content: bytes | None
    removed: int
    problem: str


def collect(part: Part, *, until: float = float("inf")) -> Collected:
    """Collect a part. Nothing is raised: what could not be had is told.

    Args:
        part: what is wanted.
        until: when the time of the whole report is up, by `time.monotonic`.
    """
    seconds = min(part.timeout_s, until - time.monotonic())
    if seconds <= 0:
        return Collected(part, None, 0, "the report took too long")
    try:
        output, problem = _run(part.argv, seconds, part.limit)
    except FileNotFoundError:
        return Collected(part, None, 0, f"{part.argv[0]} is not installed")
    except OSError as error:
        return Collected(part, None, 0, f"cannot run {part.argv[0]}: {error.strerror}")
    if problem and not output:
        return Collected(part, None, 0, problem)
    text = output.decode(errors="backslashreplace")
    if not part.toml:
        text, removed = redact(text)
        return Collected(part, text.encode(errors="replace"), removed, problem)
    try:
        document, removed = redact_toml(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        # What cannot be read cannot be looked through, either.
        return Collected(part, None, 0, problem or f"no TOML: {redact(str(error))[0]}")
    return Collected(part, tomli_w.dumps(document).encode(errors="replace"), removed, problem)


def _run(argv: Sequence[str], seconds: float, limit: int) -> tuple[bytes, str]:
    """Run a program.

    Args:
        argv: the program and its arguments.
        seconds: after which it is killed, with all that it has started and not given a session of its own.
        limit: bytes of its output, after which it is killed.

    Returns:
        Its output so far, and why that is not all, or what it said on failing.

    Raises:
        FileNotFoundError: it is not installed.
        OSError: it cannot be run.
    """
    if shutil.which(argv[0]) is None:
        raise FileNotFoundError(argv[0])
    process = subprocess.Popen(
        # Whatever kills this process, the child does not outlive it.
        ["setpriv", "--pdeathsig", "KILL", "--", *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(os.environ),
        start_new_session=True,
    )
    assert process.stdout
    assert process.stderr
    output, words = bytearray(), bytearray()
    deadline = time.monotonic() + seconds
    problem = ""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ, output)
            selector.register(process.stderr, selectors.EVENT_READ, words)
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    problem = f"{argv[0]} did not end within {round(seconds, 1):g} s"
                    break
                for key, _ in ready:
                    data = os.read(key.fd, _CHUNK)
                    if not data:
                        selector.unregister(key.fileobj)
                    key.data.extend(data)
                    del words[:-_MAX_WORDS]
                if len(output) > limit:
                    del output[limit:]
                    problem = f"the rest after {limit >> 10} KiB is left out"
                    break
    finally:
        status = _end(process, max(0.0, deadline - time.monotonic()) if not problem else 0.0)
        process.stdout.close()
        process.stderr.close()
    if not problem and status != 0:
        said = redact(words.decode(errors="backslashreplace").strip())[0].splitlines()
        problem = f"{argv[0]} ended with status {status}" + (f": {said[-1]}" if said else "")
    return bytes(output), problem


def _end(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Wait for the end, then kill; the status, or None if it does not even end then."""
    for wait_s in (seconds, _KILL_TIMEOUT_S):
        try:
            return process.wait(wait_s)
        except subprocess.TimeoutExpired:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    return None


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    passed = {name: value for name, value in own.items() if name.startswith("KATA_") or name in ("HOME", "PATH")}
    return {**passed, "LC_ALL": "C.UTF-8"}
