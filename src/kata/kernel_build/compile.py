"""Run the kernel's make: its progress counted, its errors found, and nothing of it left when it is to end.

make has children of its own, which outlive it when it is killed. So it runs in a process id namespace, which ends with
its first process, and that one ends with this process: pid_namespaces(7), unshare(1).
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kata.command import ENVIRONMENT, confined, fail
from kata.errors import DeadlineExceeded, Internal

_STEP = re.compile(r"^  [A-Z]+\b")
_ERROR = re.compile(r"\berror\b|\bundefined reference\b|No space left on device", re.IGNORECASE)
_LINES_KEPT = 50
#: After an interrupt, make removes what it has half made.
_INTERRUPT_S = 10.0


def compile_(
    command: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str],
    timeout: float,
    unfinished: Path,
    step: Callable[[int], None] = lambda _: None,
) -> None:
    """Run a command of make to its end.

    Args:
        command: as `plan.make` gives it.
        log: file for all that it prints.
        env: variables in addition to a fixed environment.
        timeout: seconds.
        unfinished: a file that is there while make runs, and stays if make was killed; what it leaves is not to be
            trusted then. make that ends by itself, after an error or an interrupt, removes what it has half made.
        step: called with the number of files made so far, at each.

    Raises:
        DeadlineExceeded: it took longer than `timeout` seconds and was killed.
        OSError: ENOSPC, by what it printed.
        Internal: it failed; the message has the first error that it printed, the hint the log.
    """
    # Whoever is not root may have such a namespace in a user namespace, where the kernel allows that.
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    argv = confined(["unshare", *user, "--pid", "--fork", "--kill-child=KILL", *command])
    unfinished.touch()
    late = threading.Event()
    errors: list[str] = []
    last: deque[str] = deque(maxlen=_LINES_KEPT)
    with (
        log.open("a", buffering=1) as out,
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**ENVIRONMENT, **env},
        ) as process,
    ):

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout, end)
        timer.daemon = True
        timer.start()
        made = 0
        try:
            assert process.stdout
            for line in process.stdout:
                out.write(line)
                if _STEP.match(line):
                    made += 1
                    step(made)
                else:
                    last.append(line)
                    if _ERROR.search(line) and not errors:
                        errors.append(line)
        except KeyboardInterrupt:
            # The terminal has told make, too.
            try:
                process.wait(_INTERRUPT_S)
                unfinished.unlink()
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    if late.is_set():
        raise DeadlineExceeded(f"make did not end within {timeout:.0f} s", hint=f"its output is in {log}")
    if process.returncode >= 0:
        unfinished.unlink()
    if process.returncode:
        try:
            fail(["make", *command[-1:]], process.returncode, errors[0] if errors else "".join(last))
        except Internal as error:
            raise Internal(error.message, hint=f"the whole output is in {log}") from None
