"""What tests of the agent in a machine share. Each module has a `guest` of its own, as a boot takes seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.vm.guest import Agent, Guest


@pytest.fixture
async def agent(guest: Guest) -> AsyncIterator[Agent]:
    """The RPCs of the module's guest."""
    async with guest.connect() as agent:
        yield agent
