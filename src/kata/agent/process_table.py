"""The processes of a container, or of the guest itself, by exec id: waited for, read, and forgotten some time later."""

from __future__ import annotations

import asyncio

from kata.agent.process import Process
from kata.errors import NotFound

#: An exec that has ended and been waited for keeps its output as long as somebody reads it, and this long.
_LINGER_S = 60.0


class ProcessTable:
    """Processes by exec id; "" is an init process, where there is one.

    Args:
        owner_id: another name of the init process, as in Kata's protocol.
        what: whose processes these are, for messages.
    """

    def __init__(self, owner_id: str, what: str) -> None:
        self.id = owner_id
        self._whose = what
        self._processes: dict[str, Process] = {}

    def process(self, exec_id: str) -> Process:
        """Return the process `exec_id`; "" or the owner's own id is the init process.

        Raises:
            NotFound: it does not exist.
        """
        process = self._processes.get("" if exec_id == self.id else exec_id)
        if process is None:
            raise NotFound(f"{self._whose} has no process {exec_id}")
        return process

    async def wait(self, exec_id: str) -> int:
        """Wait for a process and return its exit code, 128 + n for signal n. An exec is forgotten some time later.

        Raises:
            NotFound: the process does not exist.
        """
        process = self.process(exec_id)
        code = await process.wait()
        if process is not self._processes.get(""):
            self._forget_later(exec_id, process)
        return code

    def _forget_later(self, exec_id: str, process: Process) -> None:
        asyncio.get_running_loop().call_later(_LINGER_S, self._forget_unread, exec_id, process)

    def _forget_unread(self, exec_id: str, process: Process) -> None:
        if any(output.awaited for output in process.stdio.outputs):
            self._forget_later(exec_id, process)
        else:
            self._forget(exec_id, process)

    async def read(self, exec_id: str, stream: str, limit: int) -> bytes:
        """Read output of a process; b"" at its end. A terminal has no standard error.

        Args:
            exec_id: see `process`.
            stream: "stdout" or "stderr".
            limit: bytes at most.

        Raises:
            NotFound: the process does not exist.
        """
        process = self.process(exec_id)
        output = process.stdio.stdout if stream == "stdout" else process.stdio.stderr
        return await output.read(limit) if output else b""

    async def drained(self, exec_id: str) -> None:
        """Wait until the output that a process has written up to now has been read. Raises NotFound."""
        await asyncio.gather(*(output.drained() for output in self.process(exec_id).stdio.outputs))

    def release(self, exec_id: str) -> None:
        """Close a process's output, of which nobody reads the rest. Raises NotFound."""
        for output in self.process(exec_id).stdio.outputs:
            output.close()

    def _forget(self, exec_id: str, process: Process) -> None:
        if self._processes.get(exec_id) is process:
            del self._processes[exec_id]
            process.stdio.close()
