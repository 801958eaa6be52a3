"""The host's tools that build an image: whether they are installed, and two of them in a pipe."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kata.command import ENVIRONMENT, PATH, confined, fail, run
from kata.errors import DeadlineExceeded, NotFound

#: Called with the next step, a short phrase.
Progress = Callable[[str], None]

#: In a root, while one of its programs is emulated.
_EMULATOR = ".emulator"
#: Times as long as otherwise; about ten times as much CPU time was seen.
_EMULATED_TAKES = 10

# The Debian package of each tool.
_PACKAGE_OF = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "chroot": "coreutils",
    "dpkg-deb": "dpkg",
    "debugfs": "e2fsprogs",
    "mkfs.erofs": "erofs-utils",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "setpriv": "util-linux",
    "tar": "tar",
    "veritysetup": "cryptsetup-bin",
}


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
        confined(producer), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as first:
        try:
            second = subprocess.run(
                confined(consumer), stdin=first.stdout, capture_output=True, timeout=timeout, env=ENVIRONMENT
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
        fail(consumer, second.returncode, second.stderr.decode(errors="replace"))
    if first.returncode:
        fail(producer, first.returncode, words.decode(errors="replace"))


def run_in(root: Path, *command: str, timeout: float, emulator: Path | None = None) -> str:
    """Run a program of a root in it and return its standard output.

    Args:
        root: becomes the program's root directory.
        *command: absolute path of the program, and its arguments.
        timeout: seconds; a multiple of them where the program is emulated.
        emulator: statically linked, runs the program if it is for another architecture than the host's. It is in the
            root for that time only; what the program runs itself is not emulated.

    Raises:
        DeadlineExceeded, OSError, Internal: as `kata.command.run`.
    """
    if emulator is None:
        return run(["chroot", str(root), *command], timeout=timeout)
    inside = root / _EMULATOR
    try:
        shutil.copy(emulator, inside)
        command = ("chroot", str(root), f"/{_EMULATOR}", *command)
        return run(command, timeout=timeout * _EMULATED_TAKES)
    finally:
        inside.unlink(missing_ok=True)


def require(tools: Iterable[str]) -> None:
    """Check that tools are installed, before any work.

    Raises:
        NotFound: one is not; the hint has the command that installs it.
    """
    for tool in tools:
        if shutil.which(tool, path=PATH) is None:
            raise NotFound(f"{tool} is not installed", hint=f"run: apt-get install {_PACKAGE_OF.get(tool, tool)}")
