"""kata-monitor as a program, on a port of the loopback."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kata.runtime.ledger.journal import STATE_ROOT
from tests.support.waiting import eventually

PROGRAM = str(Path(sys.executable).with_name("kata-monitor"))
_TIMEOUT_S = 60.0


class RunningMonitor:
    """One that runs. Made by `kata_monitor`.

    Attributes:
        address: HOST:PORT.
        pid: its process.
    """

    def __init__(self, address: str, pid: int) -> None:
        self.address = address
        self.pid = pid

    def get(self, path: str) -> str:
        """What it answers, also to a mistake."""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=_TIMEOUT_S) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def memory_bytes(self) -> int:
        """Its resident memory."""
        (line,) = re.findall(r"^kata_monitor_process_resident_memory_bytes (\d+)$", self.get("/metrics"), re.MULTILINE)
        return int(line)


@contextmanager
def kata_monitor(scratch: Path, *options: str, state_root: Path | None = None) -> Iterator[RunningMonitor]:
    """A kata-monitor on a free port, until the end of the block.

    Args:
        scratch: for its log.
        options: of its command line.
        state_root: what it finds in the place of /run/kata; None for that itself.
    """
    log = scratch / "kata-monitor.log"
    command = ["setpriv", "--pdeathsig=SIGKILL", "--", PROGRAM, "--listen-address", "127.0.0.1:0", *options]
    if state_root is not None:
        bind = f'mkdir -p {STATE_ROOT} && mount --bind "$0" {STATE_ROOT} && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", bind, str(state_root), *command]
    with log.open("wb") as output:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as process:
            try:
                found = eventually(
                    lambda: re.search(r"listening on http://(\S+)\"", log.read_text()),
                    "kata-monitor",
                    wanted=lambda found: found or process.poll() is not None,
                )
                assert found is not None, log.read_text()
                yield RunningMonitor(found[1], process.pid)
                process.terminate()
                process.wait(timeout=_TIMEOUT_S)
            finally:
                process.kill()
    errors = [line for line in log.read_text().splitlines() if "level=error" in line or "Traceback" in line]
    assert errors == []
