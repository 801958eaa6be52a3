"""Run the host's tools, each with a deadline.

A tool never outlives its caller: it is killed at its deadline, when the caller is interrupted, and by the kernel when
the caller itself is killed.
"""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from kata.errors import DeadlineExceeded, Internal

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
#: What a tool writes must not depend on who runs it: no locale, no proxy, a fixed hash seed.
ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> str:
    """Run a tool to its end and return its standard output.

    Args:
        argv: the tool and its arguments.
        timeout: seconds.
        cwd: working directory; None for this process's.
        env: variables in addition to a fixed environment.
        pass_fds: descriptors that it inherits, under their numbers.

    Raises:
        DeadlineExceeded: it took longer than `timeout` seconds and was killed.
        OSError: ENOSPC, by what it wrote to standard error; or setpriv(1), which runs it, is not installed.
        Internal: it failed in another way, or is not installed; the message ends with the last lines of its output.
    """
    try:
        done = subprocess.run(
            confined(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=cwd,
            env={**ENVIRONMENT, **(env or {})},
            pass_fds=pass_fds,
        )
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(f"{argv[0]} did not end within {timeout:.0f} s") from None
    if done.returncode:
        fail(argv, done.returncode, done.stderr or done.stdout)
    return done.stdout


def confined(argv: Sequence[str]) -> list[str]:
    """A command that the kernel kills when its parent dies, even by SIGKILL: nobody else could clean up then."""
    return ["setpriv", "--pdeathsig", "KILL", *argv]


def fail(argv: Sequence[str], status: int, words: str) -> NoReturn:
    """Say how a tool has failed, by its exit status and by what it has written.

    Raises:
        OSError: ENOSPC, if it says so.
        Internal: in all other cases.
    """
    if "No space left on device" in words:
        raise OSError(errno.ENOSPC, "No space left on device", argv[0])
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    # apt explains an error in the lines beneath it.
    lines = [line for line in lines if line.startswith("E: ")] or lines
    how = f"signal {-status}" if status < 0 else f"status {status}"
    raise Internal(f"{' '.join(argv[:2])} failed with {how}: {' | '.join(lines[-3:]) or 'no output'}")
