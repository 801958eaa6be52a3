"""What all containers of an agent use, including the streams of pre-spawned processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from kata.agent.config import AgentConfig
from kata.agent.devices.find import Finder
from kata.agent.oom import OomWatcher
from kata.agent.paths import Paths
from kata.agent.reaper import Reaper
from kata.agent.reserve import Reserve
from kata.agent.runtime import Runtime
from kata.agent.stdio import Stdio

log = logging.getLogger(__name__)

# Containers to pre-spawn: a pod's own and the first one in it.
_PRESPAWNED = 2


class AgentContext:
    """One per agent.

    Args:
        paths: where the agent keeps things.
        reaper: starts programs and collects exits.
        runtime: the container runtime.
        oom: watches for out-of-memory kills.
        config: the agent's settings.
        devices: finds hot-plugged devices; one that loads no drivers unless given.
        reserve: what the containers may use together; everything unless given.
    """

    def __init__(
        self,
        paths: Paths,
        reaper: Reaper,
        runtime: Runtime,
        oom: OomWatcher,
        config: AgentConfig,
        devices: Finder | None = None,
        reserve: Reserve | None = None,
    ) -> None:
        self.paths = paths
        self.reaper = reaper
        self.runtime = runtime
        self.oom = oom
        self.config = config
        self.devices = devices or Finder(config.hotplug_timeout)
        self.reserve = reserve or Reserve()
        self._consoles = 0
        self._prespawned: list[Stdio] = []

    def prespawn_containers(self) -> None:
        """Pre-spawn the next few containers. Where that fails they are created on request."""
        try:
            while len(self._prespawned) < _PRESPAWNED:
                self._prespawned.append(self.prespawn(""))
        except OSError as error:
            log.warning("cannot pre-spawn a container: %s", error)

    def prespawn(self, container_id: str) -> Stdio:
        """Pre-spawn a container, or a process in the one that is named; return the streams that it will have.

        Raises:
            OSError: pipes or process cannot be made.
        """
        stdio = Stdio.open_pipes(self.config.container_pipe_size)
        try:
            self.runtime.prespawn(stdio.streams, container_id)
        except BaseException:
            stdio.close()
            raise
        return stdio

    def open_stdio(self, process: Mapping[str, Any], *, prespawned: bool = False) -> Stdio:
        """Streams as the OCI `process` wants them.

        Args:
            process: `terminal` of it decides.
            prespawned: whether those of a pre-spawned container will do, if there are any.
        """
        if not process.get("terminal"):
            if prespawned and self._prespawned:
                return self._prespawned.pop()
            return Stdio.open_pipes(self.config.container_pipe_size)
        self._consoles += 1
        os.makedirs(self.paths.run, mode=0o700, exist_ok=True)
        return Stdio.open_terminal(f"{self.paths.run}/console-{self._consoles}")
