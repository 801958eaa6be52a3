"""A container's hooks that run on the host: programs that the spec names, which read the container's state.

`startContainer` is not among them: it runs in the container, and so in the guest. `createContainer` should run in the
container's namespaces; most are in the guest, so it runs on the host, in the pod's network namespace. The others run in
the namespaces that the shim was started in: nerdctl's set up the container's network from there, by the process id in
the state.

Imported only by sandboxes that have a container with hooks.

Source: OCI runtime-spec, config.md, "POSIX-platform Hooks".
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, KataError
from kata.oci.spec import Bundle, Hook, load_bundle
from kata.oci.state import Status, make_state
from kata.runtime.ledger.processes import MARKER
from kata.runtime.network.namespace import PodNetwork
from kata.runtime.storage.host_mounts import on_host

log = logging.getLogger(__name__)

#: Seconds that a hook without a timeout may take: none may take for ever.
_TIMEOUT_S = 60.0
#: The same after the shim was killed: containerd waits 5 s for all of the cleaning up.
_LATE_TIMEOUT_S = 3.0
#: The kind that runs in the pod's network namespace.
IN_NETWORK = "createContainer"
_MAX_OUTPUT = 500
_MAX_LINES = 3


@dataclass(frozen=True)
class HostHooks:
    """The hooks of one container.

    Attributes:
        directory: the sandbox's state directory. Hooks have its name in their environment, so that none outlives a
            shim that is killed.
        network: the pod's network namespace, for those of IN_NETWORK. Closed with `close`.
    """

    container_id: str
    bundle: Bundle
    directory: str
    network: PodNetwork | None

    #: In the order in which they run.
    before_creation = ("prestart", "createRuntime", IN_NETWORK)

    @property
    def late(self) -> str:
        """The ledger's entry of kind HOOKS for those to be run if this process dies; "" if there are none."""
        return f"{self.container_id} {self.directory} {self.bundle.path}" if self._of("poststop") else ""

    async def run(self, *kinds: str, status: Status, pid: int) -> None:
        """Run the hooks of some kinds, one after another.

        Args:
            *kinds: as the spec names them.
            status: of the container, for the state that hooks read.
            pid: of the process that stands for the container on the host; 0: none.

        Raises:
            InvalidArgument: a hook's path is not absolute.
            FailedPrecondition: one cannot be run, or failed; those after it were not run.
            DeadlineExceeded: one took too long, and was killed with all that it had started.
        """
        state = self._state(status, pid)
        for kind in kinds:
            for hook in self._of(kind):
                await asyncio.to_thread(on_host, self._run, kind, hook, state)

    async def run_after(self, kind: str, *, status: Status, pid: int) -> None:
        """Run hooks whose failure is only logged, and does not keep the next ones from running."""
        state = self._state(status, pid)
        for hook in self._of(kind):
            try:
                await asyncio.to_thread(on_host, self._run, kind, hook, state)
            except KataError as error:
                log.warning("%s", error)

    def run_now(self, kind: str, *, most: float) -> None:
        """As `run_after`, for a container that has stopped and a process without an event loop.

        Args:
            kind: as the spec names it.
            most: seconds that each may take at most, whatever its own timeout.
        """
        state = self._state("stopped", 0)
        for hook in self._of(kind):
            try:
                self._run(kind, hook, state, most)
            except KataError as error:
                log.warning("%s", error)

    def close(self) -> None:
        """Close the network namespace: no more hooks will run."""
        if self.network is not None:
            self.network.close()

    def _of(self, kind: str) -> Sequence[Hook]:
        hooks: Mapping[str, Any] = self.bundle.spec.get("hooks") or {}
        return hooks.get(kind) or ()

    def _state(self, status: Status, pid: int) -> bytes:
        annotations = self.bundle.spec.get("annotations")
        state = make_state(self.container_id, status, str(self.bundle.path), pid=pid, annotations=annotations)
        return json.dumps(state).encode()

    def _run(self, kind: str, hook: Hook, state: bytes, most: float = float("inf")) -> None:
        path = hook["path"]
        what = f"container {self.container_id}: {kind} hook {path}"
        if not os.path.isabs(path):
            raise InvalidArgument(f"{what}: the path is not absolute")
        seconds = min(float(hook.get("timeout") or _TIMEOUT_S), most)
        environment = dict(entry.partition("=")[::2] for entry in hook.get("env") or ())
        output = os.memfd_create("hook", os.MFD_CLOEXEC)
        try:
            # The thread is in the namespace only while it forks.
            with self.network.inside() if self.network and kind == IN_NETWORK else nullcontext():
                process = subprocess.Popen(
                    hook.get("args") or [path],
                    executable=path,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    cwd=self.bundle.path,
                    env={**environment, MARKER: self.directory},
                    start_new_session=True,
                )
            try:
                process.communicate(state, timeout=seconds)
            except subprocess.TimeoutExpired:
                raise DeadlineExceeded(f"{what} did not end within {seconds:g} s and was killed") from None
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if process.returncode:
                # The end of its output: what went wrong comes after what went well.
                size = os.fstat(output).st_size
                lines = os.pread(output, _MAX_OUTPUT, max(0, size - _MAX_OUTPUT)).decode(errors="replace").split("\n")
                last = " | ".join([line for line in lines if line.strip()][-_MAX_LINES:])
                raise FailedPrecondition(f"{what} ended with status {process.returncode}: {last or 'no output'}")
        except OSError as error:
            raise FailedPrecondition(f"{what} cannot be run: {error.strerror}") from error
        finally:
            os.close(output)


def release_hooks(entry: str) -> None:
    """Run the poststop hooks of a container whose shim was killed. Without its bundle there are none.

    Args:
        entry: the ledger's "CONTAINER STATE-DIRECTORY BUNDLE".
    """
    container_id, directory, bundle_path = entry.split(" ", 2)
    try:
        bundle = load_bundle(Path(bundle_path))
    except KataError:
        return
    HostHooks(container_id, bundle, directory, None).run_now("poststop", most=_LATE_TIMEOUT_S)
