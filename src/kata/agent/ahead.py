"""A container's creation, begun before anybody asks for one."""

from __future__ import annotations

import fcntl
import os
import select

from kata.agent.crun import Call, Streams
from kata.agent.reaper import Reaper


class Waiting:
    """`crun create`, started before there is a container: it waits for the configuration, which is to come by a FIFO.

    In an emulated guest half of what crun takes is its execution and the loading of its libraries, and that is over
    before it reads the first byte.

    Args:
        directory: made, and from then on the bundle; whoever deletes the container removes it.
        name: crun's name for the container.
    """

    def __init__(self, reaper: Reaper, root: str, directory: str, name: str, streams: Streams) -> None:
        self.name = name
        self._configuration = f"{directory}/config.json"
        os.makedirs(directory, mode=0o700)
        os.mkfifo(self._configuration, 0o600)
        options = [f"--bundle={directory}", name]
        self.call = Call(reaper, root, "create", options, {"--pid-file": b""}, streams)

    def go_on(self, configuration: str) -> bool:
        """Have it make the container that a file describes; if that cannot be done any more it is ended: False."""
        with open(configuration, "rb") as file:
            content = file.read()
        try:
            # Without waiting: it waits in its own open, or is dead.
            fifo = os.open(self._configuration, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self.call.kill()
            return False
        try:
            # It reads the file again, for its own state, and by then the FIFO's content is gone.
            os.symlink(configuration, f"{self._configuration}.new")
            os.rename(f"{self._configuration}.new", self._configuration)
            if len(content) > select.PIPE_BUF:
                fcntl.fcntl(fifo, fcntl.F_SETPIPE_SZ, len(content))
            if os.write(fifo, content) == len(content):
                return True
        except OSError:
            pass  # it has died this moment, or the configuration is larger than any pipe
        finally:
            os.close(fifo)
        self.call.kill()
        return False
