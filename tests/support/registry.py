"""An image registry on loopback: Debian's docker-registry, with its files in a directory of the caller."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

from kata.errors import FailedPrecondition
from tests.support.packages import unpack

_PACKAGE = "docker-registry"
_START_S = 15.0
_POLL_S = 0.05

_CONFIGURATION = """\
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "{address}"}}
"""


class Registry:
    """A running registry. A context manager.

    Args:
        directory: for its program, configuration, images and log.

    Attributes:
        address: host and port, with which the images' names begin. containerd uses plain HTTP for loopback.

    Raises:
        FailedPrecondition: it does not start.
        Unavailable: its package cannot be downloaded.
        Internal: its package does not exist.
    """

    def __init__(self, directory: Path) -> None:
        # Not installed: that would start a service.
        program = directory / "program"
        program.mkdir()
        unpack(program, _PACKAGE, alone=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._log = directory / "registry.log"
        configuration = directory / "registry.yml"
        configuration.write_text(_CONFIGURATION.format(root=directory / "registry", address=self.address))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program / "usr/bin" / _PACKAGE, "serve", configuration],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.defpath, "OTEL_TRACES_EXPORTER": "none"},
            )

    def __enter__(self) -> Registry:
        host, _, port = self.address.partition(":")
        deadline = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = self._log.read_text(errors="replace").strip()[-500:]
                    self.__exit__()
                    raise FailedPrecondition(f"{_PACKAGE} does not start: {said}") from None
                time.sleep(_POLL_S)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
