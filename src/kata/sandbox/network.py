"""A sandbox's network: the pod's interfaces found, joined to tap devices, plugged in, and set up in the guest."""

from __future__ import annotations

import logging
import os

from kata.errors import FailedPrecondition
from kata.guest.agent import AgentClient
from kata.hypervisor.base import VirtualMachine
from kata.hypervisor.devices import NetworkDevice
from kata.network.endpoints import (
    NO_LIMIT,
    Endpoint,
    Rates,
    endpoints,
    interface_message,
    neighbours_message,
    routes_message,
)
from kata.network.namespace import PodNetwork
from kata.sandbox.forward import PortForward
from kata.sandbox.ledger import NETWORK, Ledger

log = logging.getLogger(__name__)


class SandboxNetwork:
    """The interfaces that a sandbox has got out of a network namespace.

    Args:
        rates: of each.

    Raises:
        NotFound, InvalidArgument: there is no such namespace, or it is the host's.
    """

    def __init__(self, path: str, ledger: Ledger, rates: Rates = NO_LIMIT) -> None:
        self._pod = PodNetwork(path)
        self._rates = rates
        self._ledger = ledger
        self._attached: dict[int, Endpoint] = {}
        self._forward: PortForward | None = None

    def again(self) -> PodNetwork:
        """The namespace for somebody else, who closes it. Raises NotFound: its path is gone."""
        return PodNetwork(self._pod.path)

    def look(self) -> list[Endpoint]:
        """The interfaces that the machine does not have yet.

        Raises:
            KataError: the namespace is gone, or has what a machine cannot be given.
        """
        found = endpoints(self._pod.look(), self._pod.path)
        return [endpoint for endpoint in found if endpoint.link.index not in self._attached]

    async def attach(self, found: list[Endpoint], vm: VirtualMachine, agent: AgentClient) -> None:
        """Give interfaces to the machine and have the guest set them up.

        Raises:
            KataError: one cannot be joined, plugged or set up; those before it stay until the sandbox ends.
        """
        if not found:
            return
        for endpoint in found:
            path = await self._plug(endpoint, vm)
            await agent.update_interface(interface_message(endpoint, path))
        everything = list(self._attached.values())
        await agent.update_routes(routes_message(everything))
        if any(endpoint.neighbours for endpoint in everything):
            await agent.add_neighbours(neighbours_message(everything))

    async def forward(self, agent: AgentClient) -> None:
        """Have connections inside the namespace reach the guest's ports. A kernel that cannot do that is only logged:
        the pod's network is whole without.
        """
        try:
            self._forward = PortForward(agent, *self._pod.catch())
        except FailedPrecondition as error:
            log.info("there will be no port-forward: %s", error.message)
            return
        await self._forward.start()

    async def close(self) -> None:
        """Forward no more, and let go of the namespace. The interfaces are on the ledger."""
        if self._forward is not None:
            await self._forward.close()
        self._pod.close()

    async def _plug(self, endpoint: Endpoint, vm: VirtualMachine) -> str:
        link = endpoint.link
        # Before anything is written down: the filters on an interface that another sandbox has are not ours to remove.
        tap = self._pod.open_tap(endpoint)
        try:
            if endpoint.is_tap:
                if self._rates != NO_LIMIT:
                    log.warning("%s is a tap device already, whose rate is not limited", link.name)
            else:
                self._ledger.hold(NETWORK, f"{self._pod.inode} {link.index} {self._pod.path}")
                self._pod.join(endpoint, self._rates)
            self._attached[link.index] = endpoint
            return await vm.plug(NetworkDevice(id=endpoint.id, taps=(tap,), mac=link.mac, mtu=link.mtu))
        finally:
            os.close(tap)  # the machine has its own copy now, or does without
