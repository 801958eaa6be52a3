"""A container's hooks that run on the host: programs that the spec names, told the container's state.

`startContainer` is not among them: that runs in the container, and so in the guest. `createContainer` would be run in
the container's namespaces; those are in the guest, so it runs on the host, as with Kata. Source: runtime-spec,
config.md, "POSIX-platform Hooks".

Imported by sandboxes that have a container with hooks.
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
from kata.runtime.sandbox.requests import namespace_of

log = logging.getLogger(__name__)

#: Seconds that a hook without a timeout may take: for ever would be as long as somebody's mistake lasts.
_TIMEOUT_S = 60.0
#: And after whoever should have run it was killed: containerd waits 5 s for all of the cleaning up.
_LATE_TIMEOUT_S = 3.0
_WORDS_MAX = 500
_LINES_MAX = 3


@dataclass(frozen=True)
class HostHooks:
    """The hooks of one container.

    Attributes:
        directory: the sandbox's state directory. Hooks carry its name, so that none outlives a shim that is killed.
        network: the pod's namespace, in which they run; None: the host's. Closed with `close`.
    """

    container_id: str
    bundle: Bundle
    directory: str
    network: PodNetwork | None

    #: In their order.
    before_creation = ("prestart", "createRuntime", "createContainer")

    @property
    def late(self) -> str:
        """The ledger's entry of kind HOOKS for what has to be run if this process cannot do it; "" if nothing has."""
        return f"{self.container_id} {self.directory} {self.bundle.path}" if self._of("poststop") else ""

    async def run(self, *kinds: str, status: Status, pid: int) -> None:
        """Run the hooks of some kinds, one after the other.

        Args:
            status: of the container, for the state that hooks read.
            pid: what stands for the container on the host; 0: nothing.

        Raises:
            InvalidArgument: a hook's path is not absolute.
            FailedPrecondition: one cannot be run, or failed. Those after it were not run.
            DeadlineExceeded: one took too long, and was killed with all that it had started.
        """
        state = self._state(status, pid)
        for kind in kinds:
            for hook in self._of(kind):
                await asyncio.to_thread(self._run, kind, hook, state)

    async def run_after(self, kind: str, *, status: Status, pid: int) -> None:
        """Run hooks whose failure changes nothing any more: it is logged, and the next ones are run."""
        state = self._state(status, pid)
        for hook in self._of(kind):
            try:
                await asyncio.to_thread(self._run, kind, hook, state)
            except KataError as error:
                log.warning("%s", error)

    def run_now(self, kind: str, *, most: float) -> None:
        """As `run_after` for a container that has stopped, by a process that does nothing else.

        Args:
            most: seconds that each may take, if it may not take less.
        """
        state = self._state("stopped", 0)
        for hook in self._of(kind):
            try:
                self._run(kind, hook, state, most)
            except KataError as error:
                log.warning("%s", error)

    def close(self) -> None:
        """No more hooks will run."""
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
        said = os.memfd_create("hook", os.MFD_CLOEXEC)
        try:
            # The thread is in the namespace only while it forks.
            with self.network.inside() if self.network else nullcontext():
                process = subprocess.Popen(
                    hook.get("args") or [path],
                    executable=path,
                    stdin=subprocess.PIPE,
                    stdout=said,
                    stderr=said,
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
                # The last words: what went wrong comes after what went well.
                size = os.fstat(said).st_size
                words = os.pread(said, _WORDS_MAX, max(0, size - _WORDS_MAX)).decode(errors="replace").split("\n")
                last = " | ".join([line for line in words if line.strip()][-_LINES_MAX:])
                raise FailedPrecondition(f"{what} ended with status {process.returncode}: {last or 'it said nothing'}")
        except OSError as error:
            raise FailedPrecondition(f"{what} cannot be run: {error.strerror}") from error
        finally:
            os.close(said)


def release_hooks(entry: str) -> None:
    """Run the poststop hooks of a container whose sandbox could not: it was killed. Without a bundle there are none.

    Args:
        entry: the ledger's "CONTAINER STATE-DIRECTORY BUNDLE".
    """
    container_id, directory, bundle_path = entry.split(" ", 2)
    try:
        bundle = load_bundle(Path(bundle_path))
    except KataError:
        return
    network = None
    if path := namespace_of(bundle.spec):
        try:
            network = PodNetwork(path)
        except KataError as error:
            log.info("poststop hooks of container %s run outside of its network: %s", container_id, error)
    hooks = HostHooks(container_id, bundle, directory, network)
    try:
        hooks.run_now("poststop", most=_LATE_TIMEOUT_S)
    finally:
        hooks.close()
