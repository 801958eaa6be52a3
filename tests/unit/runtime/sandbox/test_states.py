"""States and the ways between them."""

from __future__ import annotations

from itertools import product

import pytest

from kata.errors import FailedPrecondition
from kata.runtime.sandbox.states import Lifecycle, State

ALLOWED = {
    (State.CREATING, State.CREATED),
    (State.CREATED, State.RUNNING),
    (State.RUNNING, State.PAUSED),
    (State.PAUSED, State.RUNNING),
    *((state, State.STOPPED) for state in State if state is not State.STOPPED),
}


def lifecycle(state: State) -> Lifecycle:
    thing = Lifecycle("container x")
    thing.state = state
    return thing


@pytest.mark.parametrize(("here", "there"), [*product(State, State)])
def test_every_pair(here: State, there: State) -> None:
    thing = lifecycle(here)
    if here is there or (here, there) in ALLOWED:
        thing.become(there)
        assert thing.state is there
    else:
        with pytest.raises(FailedPrecondition, match=rf"^container x cannot become {there}: it is {here}$"):
            thing.become(there)
        assert thing.state is here


def test_what_an_operation_requires() -> None:
    thing = lifecycle(State.PAUSED)
    thing.require("delete", State.STOPPED, State.PAUSED)
    with pytest.raises(FailedPrecondition, match=r"^cannot start container x: it is paused$"):
        thing.require("start", State.CREATED)
