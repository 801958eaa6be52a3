"""What happens in a sandbox, told as it happens to whoever listens: containerd's front end, clients on the host.

Every shim imports this: classes that Python has to generate code for would cost each a millisecond.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Mapping
from typing import Any


class Happening:
    """What can happen."""

    CONTAINER_CREATED = "container-created"
    CONTAINER_STARTED = "container-started"
    CONTAINER_EXITED = "container-exited"
    CONTAINER_PAUSED = "container-paused"
    CONTAINER_RESUMED = "container-resumed"
    CONTAINER_DELETED = "container-deleted"
    OOM = "oom"
    EXEC_STARTED = "exec-started"
    EXEC_EXITED = "exec-exited"
    SANDBOX_STOPPED = "sandbox-stopped"


class Event:
    """One of these, once.

    Attributes:
        type: one of `Happening`.
        container: its id; "" if it is the sandbox's.
        detail: of an exit `exit_status`, of an exec process `exec_id`.
        time: seconds since 1970.
    """

    __slots__ = ("container", "detail", "time", "type")

    def __init__(
        self, what: str, container: str = "", detail: Mapping[str, Any] | None = None, *, time: float | None = None
    ) -> None:
        self.type = what
        self.container = container
        self.detail = detail or {}
        self.time = clock.time() if time is None else time

    def describe(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"time": self.time, "type": self.type, "container": self.container, "detail": self.detail}


class Events:
    """Listeners are called in turn, and must neither block nor raise."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Event], None]] = []

    def tell(self, event: Event) -> None:
        """It has happened."""
        for listener in list(self._listeners):
            listener(event)

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call it for each event from now on; the function that is returned ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)
