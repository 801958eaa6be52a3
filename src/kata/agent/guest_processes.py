"""Processes in the guest itself, beside the containers: the debug console's, and the program that copies files.

ExecProcess means the guest if it names no container. Anyone who can reach the agent can copy files of the containers,
whose processes it runs anyway; a shell of the guest's own needs `agent.debug_console`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import kata
from kata.agent.container import Container
from kata.agent.context import AgentContext
from kata.agent.process import Process
from kata.agent.process_table import ProcessTable
from kata.agent.reaper import ENVIRONMENT
from kata.agent.stdio import Stdio
from kata.errors import AlreadyExists, FailedPrecondition, NotFound, PermissionDenied
from kata.protocols import files

_SHELL = "/bin/sh"
#: Processes at a time.
_MAX_PROCESSES = 64
#: Where the agent's own modules are found, by a Python that looks nowhere else.
_COPYING = """
import sys
sys.path[:] = {path!r}
from kata.agent.copying import main
sys.exit(main(sys.argv[1:]))
"""


class GuestProcesses(ProcessTable):
    """The processes of one guest.

    Args:
        agent: starts them.
        container: looks up a container by its id.
    """

    def __init__(self, agent: AgentContext, container: Callable[[str], Container]) -> None:
        super().__init__("", "the guest")
        self._agent = agent
        self._container = container

    async def exec(self, exec_id: str, spec: Mapping[str, Any]) -> None:
        """Run a process.

        Args:
            exec_id: its id, valid.
            spec: the OCI `process`; `args`, `env`, `cwd` and `terminal` count.

        Raises:
            AlreadyExists: a process has the id.
            InvalidArgument: the program that copies files has wrong arguments.
            FailedPrecondition: it is none of this guest's own, and the debug console is off; or there are too many.
            NotFound: the program does not exist.
            PermissionDenied: it cannot be executed.
        """
        if exec_id in self._processes:
            raise AlreadyExists(f"process {exec_id} already exists in the guest")
        if sum(process.running for process in self._processes.values()) >= _MAX_PROCESSES:
            raise FailedPrecondition(f"there are {_MAX_PROCESSES} processes in the guest already")
        argv = self._command(spec)
        stdio, terminal = Stdio.open_pty() if spec.get("terminal") else (Stdio.open_pipes(), None)
        env = dict(text.partition("=")[::2] for text in spec.get("env") or ())
        streams = stdio.streams
        try:
            pid, exited = self._agent.reaper.spawn(
                argv,
                stdin=None if terminal else streams.stdin,
                stdout=None if terminal else streams.stdout,
                stderr=None if terminal else streams.stderr,
                terminal=terminal,
                env={**ENVIRONMENT, **env},
            )
        except OSError as error:
            stdio.close()
            if isinstance(error, PermissionError):
                raise PermissionDenied(f"exec: permission denied: {argv[0]}") from error
            raise NotFound(f"executable file not found: {argv[0]}") from error
        self._processes[exec_id] = Process(f"process {exec_id} of the guest", pid, exited, stdio, lambda: None)
        await stdio.handed_over()

    def _command(self, spec: Mapping[str, Any]) -> list[str]:
        args = list(spec["args"])
        if args[0] == files.PROGRAM:
            verb, container_id, rest = files.parse(args)
            path = [*sys.path, os.path.dirname(os.path.dirname(kata.__file__))]
            python = [sys.executable or "/usr/bin/python3", "-IS", "-c", _COPYING.format(path=path)]
            return [*python, verb, self._container(container_id).root, *rest]
        if not self._agent.config.debug_console:
            raise FailedPrecondition("the guest's debug console is off")
        directory = spec.get("cwd") or "/"
        return args if directory == "/" else [_SHELL, "-c", 'cd "$0" && exec "$@"', directory, *args]

    def signal(self, exec_id: str, number: int) -> None:
        """Send a signal.

        Raises:
            InvalidArgument: the signal does not exist.
            NotFound: the process does not exist, or has ended.
        """
        self.process(exec_id).signal(number)
