"""Run the host's tools, each with a deadline.

A child never outlives its builder: it is killed at its deadline, when the caller is interrupted, and by the kernel when
the builder itself is killed.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from kata.errors import DeadlineExceeded, Internal, NotFound

# The Debian package of each tool.
_PACKAGE_OF = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "chroot": "coreutils",
    "dpkg-deb": "dpkg",
    "ldconfig": "libc-bin",
    "mkfs.erofs": "erofs-utils",
    "setpriv": "util-linux",
    "tar": "tar",
}

# The guest's files must not depend on who builds: no locale, no proxy for chrooted tools, a fixed hash seed.
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": _PATH, "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}


def run(argv: Sequence[str], *, timeout: float, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a tool to its end and return its standard output.

    Args:
        argv: the tool and its arguments.
        timeout: seconds.
        cwd: working directory; None for this process's.
        env: variables in addition to a fixed environment.

    Raises:
        DeadlineExceeded: it took longer than `timeout` seconds and was killed.
        OSError: ENOSPC, by what it wrote to standard error; or setpriv(1), which runs it, is not installed.
        Internal: it failed in another way, or is not installed; the message ends with the last lines of its output.
    """
    try:
        done = subprocess.run(
            _confined(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=cwd,
            env={**_ENVIRONMENT, **(env or {})},
        )
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(f"{argv[0]} did not end within {timeout:.0f} s") from None
    if done.returncode:
        _fail(argv, done.returncode, done.stderr or done.stdout)
    return done.stdout


def pipe(producer: Sequence[str], consumer: Sequence[str], *, timeout: float) -> None:
    """Run `producer | consumer` to the end of both.

    Args:
        producer: a tool and its arguments; its standard output is read by the other.
        consumer: a tool and its arguments.
        timeout: seconds, for both.

    Raises:
        DeadlineExceeded: they took longer than `timeout` seconds and were killed.
        OSError: as `run`.
        Internal: one failed in another way, or is not installed; the consumer's failure goes before the producer's.
    """
    with subprocess.Popen(
        _confined(producer), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_ENVIRONMENT
    ) as first:
        try:
            second = subprocess.run(
                _confined(consumer), stdin=first.stdout, capture_output=True, timeout=timeout, env=_ENVIRONMENT
            )
            if first.stdout:
                first.stdout.close()
            _, words = first.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise DeadlineExceeded(f"{producer[0]} | {consumer[0]} did not end within {timeout:.0f} s") from None
        finally:
            first.kill()
    # The consumer first: when it fails, the producer's broken pipe is only a consequence.
    if second.returncode:
        _fail(consumer, second.returncode, second.stderr.decode(errors="replace"))
    if first.returncode:
        _fail(producer, first.returncode, words.decode(errors="replace"))


def require(tools: Iterable[str]) -> None:
    """Check that tools are installed, before any work.

    Raises:
        NotFound: one is not; the hint has the command that installs it.
    """
    for tool in tools:
        if shutil.which(tool, path=_PATH) is None:
            raise NotFound(f"{tool} is not installed", hint=f"run: apt-get install {_PACKAGE_OF.get(tool, tool)}")


def digests(*tools: str) -> dict[str, str]:
    """SHA-256 of each tool's program, because another version may write other bytes."""
    return {tool: hashlib.sha256(Path(shutil.which(tool, path=_PATH) or "").read_bytes()).hexdigest() for tool in tools}


def _confined(argv: Sequence[str]) -> list[str]:
    # The kernel kills the child when its parent dies, even by SIGKILL: nobody else could clean up then.
    return ["setpriv", "--pdeathsig", "KILL", *argv]


def _fail(argv: Sequence[str], status: int, words: str) -> NoReturn:
    if "No space left on device" in words:
        raise OSError(errno.ENOSPC, "No space left on device", argv[0])
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    how = f"signal {-status}" if status < 0 else f"status {status}"
    raise Internal(f"{' '.join(argv[:2])} failed with {how}: {' | '.join(lines[-3:]) or 'no output'}")
