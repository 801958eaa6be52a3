"""What tests of the agent in a VM share: one guest, as a boot takes seconds. Those with other devices have another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.vm.guest import Agent, Guest, make_rootfs, sandboxed


@pytest.fixture(scope="session")
def guest() -> Iterator[Guest]:
    """With a root directory for containers, `base`."""
    for guest in sandboxed():
        make_rootfs(guest.share, "base")
        yield guest


@pytest.fixture
async def agent(guest: Guest) -> AsyncIterator[Agent]:
    """The RPCs of the guest."""
    async with guest.connect() as agent:
        yield agent
