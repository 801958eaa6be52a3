"""The last call to a guest: what its containers have written goes to the host, as long as the guest gets on with it."""

from __future__ import annotations

import asyncio
import logging

from kata.errors import KataError, Unavailable
from kata.runtime.agent_client.client import AgentClient

log = logging.getLogger(__name__)

#: Seconds for all of it. An honest guest gives up by itself when its disks take nothing any more.
FLUSH_TIMEOUT_S = 60.0
#: Seconds until the agent is asked whether it is still there, and seconds for its answer.
_ASK_INTERVAL_S = 1.0
_ANSWER_TIMEOUT_S = 3.0


async def flush_guest(what: str, agent: AgentClient) -> None:
    """Have the guest kill its processes and flush. Never fails: what is lost is logged.

    Args:
        what: names the sandbox in the log.
        agent: of its guest.
    """
    flushing = asyncio.ensure_future(agent.destroy_sandbox(FLUSH_TIMEOUT_S))
    try:
        while not (await asyncio.wait({flushing}, timeout=_ASK_INTERVAL_S))[0]:
            await agent.check(_ANSWER_TIMEOUT_S)
        await flushing
    except Unavailable as error:
        log.debug("%s: the guest has ended: %s", what, error)
    except KataError as error:
        log.warning("%s: what its containers have written last may be lost: %s", what, error)
    finally:
        flushing.cancel()
