"""The states of a sandbox, a container and a process, and the transitions between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from kata.errors import FailedPrecondition


class State(StrEnum):
    """States as the OCI runtime-spec (runtime.md, "State") and containerd name them."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


_NEXT: Mapping[State, frozenset[State]] = {
    State.CREATING: frozenset({State.CREATED, State.STOPPED}),
    State.CREATED: frozenset({State.RUNNING, State.STOPPED}),
    State.RUNNING: frozenset({State.PAUSED, State.STOPPED}),
    State.PAUSED: frozenset({State.RUNNING, State.STOPPED}),
    State.STOPPED: frozenset(),
}


class Lifecycle:
    """Something with a state; `what` names it in messages, e.g. "container x"."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.state = State.CREATING

    def require(self, operation: str, *allowed: State) -> None:
        """Check that an operation may begin now.

        Args:
            operation: a verb, e.g. "start", for the message.
            *allowed: the states in which it may.

        Raises:
            FailedPrecondition: the state is none of `allowed`.
        """
        if self.state not in allowed:
            raise FailedPrecondition(f"cannot {operation} {self.what}: it is {self.state}")

    def become(self, state: State) -> None:
        """Change the state; to the present one is no change.

        Raises:
            FailedPrecondition: there is no transition from the present state to this one.
        """
        if state is self.state:
            return
        if state not in _NEXT[self.state]:
            raise FailedPrecondition(f"{self.what} cannot become {state}: it is {self.state}")
        self.state = state
