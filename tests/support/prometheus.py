"""A Prometheus of Debian's guest suite, and its promtool: unpacked, since the package would start a service."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support.packages import unpack
from tests.support.waiting import eventually

_TIMEOUT_S = 60.0

_CONFIGURATION = """\
global: {{ scrape_interval: 1s, scrape_timeout: 1s }}
scrape_configs:
  - job_name: kata
    scrape_interval: {interval}s
    scrape_timeout: {interval}s
    static_configs: [{{ targets: ["{target}"] }}]
"""


def programs(directory: Path) -> Path:
    """Unpack them; return the directory that they are in. Raises as `unpack`."""
    unpack(directory, "prometheus", "promtool", alone=True)
    return directory / "usr/bin"


def complaints(programs: Path, text: str) -> tuple[int, list[tuple[str, str]]]:
    """What `promtool check metrics` says: its exit code, and name and complaint of each line."""
    done = subprocess.run(
        [programs / "promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    lines = (done.stdout + done.stderr).splitlines()
    return done.returncode, [(name, what) for name, _, what in (line.partition(" ") for line in lines)]


class Prometheus:
    """One that runs. Made by `prometheus`."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, **fields: str) -> Any:
        """The data that its API answers."""
        url = f"http://{self._address}/api/v1/{path}?{urlencode(fields)}"
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        result: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return result


@contextmanager
def prometheus(programs: Path, scratch: Path, target: str, *, interval_s: int = 2, port: int) -> Iterator[Prometheus]:
    """A Prometheus that scrapes a target, until the end of the block."""
    configuration = scratch / "prometheus.yml"
    configuration.write_text(_CONFIGURATION.format(target=target, interval=interval_s))
    address = f"127.0.0.1:{port}"
    command = [
        *("setpriv", "--pdeathsig=SIGKILL", "--"),
        str(programs / "prometheus"),
        f"--config.file={configuration}",
        f"--storage.tsdb.path={scratch / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with (scratch / "prometheus.log").open("wb") as log:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process:
            try:
                found = Prometheus(address)
                eventually(lambda: _is_ready(address), "Prometheus", poll_s=0.2)
                yield found
            finally:
                process.kill()


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
