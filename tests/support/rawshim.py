"""A shim without a containerd: the test makes containerd's calls itself.

For what containerd never does (malformed requests, races, calls in a wrong order), and for what Debian's containerd
does not support yet (the start parameters of containerd 2, version 3 of the Task service).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType
from typing import Any

from kata import ttrpc
from kata.oci.default import default_spec
from kata.protocols.containerd import task_v2_pb2
from kata.runtime.ledger.journal import STATE_ROOT
from kata.runtime.ledger.names import state_name
from kata.runtime.ledger.processes import processes_of
from kata.shim.launcher import NAME, write_launcher
from kata.ttrpc.typed import Stub
from tests.support.containerd import unique_id
from tests.support.images import busybox_rootfs

#: containerd's, of the sandboxes.
NAMESPACE = "raw"
_BINARY_S = 60.0


class RawShim:
    """Bundles in a directory of their own, and the shim binary. A context manager.

    Args:
        prefix: what the ids begin with.
        environment: of the shim, added to PATH; without TTRPC_ADDRESS the shim publishes no events.
        wrapper: a command that runs the shim, e.g. with fewer privileges.

    Attributes:
        directory: holds the bundles and the launcher.
        environment: of the shim.
        address: stands for containerd's; part of the hash that names the sockets.
    """

    def __init__(
        self, prefix: str, environment: Mapping[str, str] | None = None, *, wrapper: Sequence[str] = ()
    ) -> None:
        self.directory = Path(mkdtemp(prefix="kr-", dir="/tmp"))
        self.address = str(self.directory / "c.sock")
        self._prefix = prefix
        self._wrapper = wrapper
        images = {"KATA_IMAGES": os.environ["KATA_IMAGES"]} if "KATA_IMAGES" in os.environ else {}
        self.environment = {"PATH": os.defpath, **images, **(environment or {})}
        self._clients: list[ttrpc.Client] = []
        self._bundles: dict[str, Path] = {}
        write_launcher(self.directory / "bin")
        busybox_rootfs(self.directory / "rootfs")

    async def __aenter__(self) -> RawShim:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.close()
        for container_id in self._bundles:
            self.kill(container_id)
            self.binary(container_id, "delete")
        shutil.rmtree(self.directory)

    def bundle(
        self, *command: str, annotations: Mapping[str, str] | None = None, spec: object = None, **options: Any
    ) -> str:
        """Make a bundle.

        Args:
            command: runs in busybox; sleep by default.
            annotations: of the spec.
            spec: the whole config.json instead, as an object or as text; ... for a bundle without one.
            options: of `default_spec`.

        Returns:
            The container's id.
        """
        container_id = unique_id(self._prefix)
        path = self._bundles[container_id] = self.directory / container_id
        path.mkdir()
        if spec is None:
            rootfs = str(self.directory / "rootfs")
            whole = default_spec(command or ("sleep", "600"), rootfs=rootfs, hostname="raw", **options)
            spec = {**whole, "annotations": dict(annotations or {})}
        if spec is not ...:
            (path / "config.json").write_text(spec if isinstance(spec, str) else json.dumps(spec), encoding="utf-8")
        return container_id

    def path(self, container_id: str) -> Path:
        """Return the bundle's directory."""
        return self._bundles[container_id]

    def state(self, container_id: str) -> Path:
        """Return the state directory of a container's sandbox."""
        return Path(STATE_ROOT, state_name(container_id, NAMESPACE))

    def binary(
        self, container_id: str, action: str, stdin: bytes | None = None, *, namespace: str = NAMESPACE
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the shim binary for `start` or `delete`, as containerd does."""
        return self.run(
            *("-namespace", namespace, "-address", self.address, "-publish-binary", "/bin/false"),
            *("-id", container_id, "-bundle", str(self.path(container_id)), action),
            cwd=self.path(container_id),
            stdin=stdin,
        )

    def run(
        self, *arguments: str, cwd: Path | None = None, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the shim binary with any arguments."""
        return subprocess.run(
            [*self._wrapper, self.directory / "bin" / NAME, *arguments],
            cwd=cwd or self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL if stdin is None else None,
            input=stdin,
            capture_output=True,
            timeout=_BINARY_S,
            check=False,
        )

    def start(self, container_id: str, stdin: bytes | None = None) -> str:
        """Run `start` and return the socket's path."""
        done = self.binary(container_id, "start", stdin)
        if done.returncode != 0:
            raise AssertionError(f"start: status {done.returncode}: {done.stdout + done.stderr!r}")
        answer = done.stdout.decode()
        address = json.loads(answer)["address"] if answer.startswith("{") else answer
        return str(address).removeprefix("unix://")

    def pid(self, container_id: str) -> int:
        """Return the id of the process that serves the container."""
        return int((self.path(container_id) / "shim.pid").read_text())

    def vmm(self, container_id: str) -> int:
        """Return the id of the QEMU process of a container's sandbox; 0 if there is none."""
        return self._process(container_id, "qemu-system")

    def file_server(self, container_id: str) -> int:
        """Return the id of the process that serves a sandbox's shared tree; 0 if QEMU does."""
        return self._process(container_id, "virtiofsd") or self._process(container_id, "virtfs-proxy-helper")

    def _process(self, container_id: str, part: str) -> int:
        for pid in processes_of(str(self.state(container_id))):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            except OSError:
                continue
            # A program may be run by its dynamic loader.
            if command[0].startswith("/") and any(
                part in os.path.basename(word) for word in command if "=" not in word
            ):
                return pid
        return 0

    def kill(self, container_id: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the shim that was started for this container, if it still runs."""
        try:
            pid = self.pid(container_id)
            if container_id.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, number)
        except (FileNotFoundError, ProcessLookupError):
            pass

    async def connect(self, socket_path: str, module: ModuleType = task_v2_pb2) -> Stub:
        """Connect to the Task service at a socket; the connection is closed with this helper."""
        client = await ttrpc.Client.connect_unix(socket_path)
        self._clients.append(client)
        return Stub(client, module.DESCRIPTOR.services_by_name["Task"])

    async def task(self, container_id: str) -> Stub:
        """Run `start` and connect."""
        return await self.connect(await asyncio.to_thread(self.start, container_id))

    def create_request(self, container_id: str, **fields: Any) -> task_v2_pb2.CreateTaskRequest:
        """Return the request of Create for a bundle of this helper, whose rootfs needs no mounts."""
        return task_v2_pb2.CreateTaskRequest(id=container_id, bundle=str(self.path(container_id)), **fields)

    def exec_spec(self, *command: str, **more: Any) -> dict[str, Any]:
        """Return the OCI process for Exec."""
        return {"args": list(command), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}, **more}
