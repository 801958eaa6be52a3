"""A sandbox's network: the pod's interfaces found, joined to tap devices, plugged in, set up in the guest, and followed
when they change."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from kata.errors import FailedPrecondition, InvalidArgument, KataError, Unavailable
from kata.linux.rtnetlink import Link
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.hypervisor.devices import NetworkDevice
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import INTERFACE, NETWORK
from kata.runtime.network.endpoints import (
    NO_LIMIT,
    Endpoint,
    Rates,
    endpoints,
    interface_message,
    neighbours_message,
    routes_message,
)
from kata.runtime.network.namespace import PodNetwork, number_of_macvtap
from kata.runtime.network.port_forward import PortForward

log = logging.getLogger(__name__)

#: Seconds from a change to the look at what it has come to: plugins and people make several, one after the other.
_SETTLE_S = 0.3
#: Each takes two interrupts of the guest.
_QUEUES_MAX = 8


@dataclass(frozen=True)
class _Attached:
    """An interface that the machine has.

    Attributes:
        endpoint: as the guest was told of it.
        path: where the guest finds the device.
        held: what is on the ledger for it.
    """

    endpoint: Endpoint
    path: str
    held: tuple[tuple[str, str], ...] = ()

    def differs(self, now: Endpoint) -> bool:
        """Whether the guest would be told otherwise; what the kernels note by themselves does not count."""
        return (
            interface_message(now, self.path) != interface_message(self.endpoint, self.path)
            or now.routes != self.endpoint.routes
            or now.neighbours != self.endpoint.neighbours
        )


#: Descriptors for the machine, and what is on the ledger for them.
_Joined = tuple[tuple[int, ...], tuple[tuple[str, str], ...]]


class SandboxNetwork:
    """The interfaces that a sandbox has got out of a network namespace.

    Args:
        model: "tcfilter" or "macvtap".
        vcpus: that the machine has.
        rates: of each.
        lend_nic: gives the machine a network card, and returns where the guest finds it.

    Raises:
        NotFound, InvalidArgument: there is no such namespace, it is the host's, or the model has no rates.
    """

    def __init__(
        self,
        path: str,
        ledger: Ledger,
        model: str,
        vcpus: int,
        rates: Rates,
        lend_nic: Callable[[Link], Awaitable[str]],
    ) -> None:
        if model == "macvtap" and rates != NO_LIMIT:
            raise InvalidArgument(
                "the rate of a macvtap interface cannot be limited", hint='set internetworking_model to "tcfilter"'
            )
        self._pod = PodNetwork(path)
        self._model = model
        self._vcpus = vcpus
        self._rates = rates
        self._lend_nic = lend_nic
        self._ledger = ledger
        self._attached: dict[int, _Attached] = {}
        self._forward: PortForward | None = None
        self._following: asyncio.Task[None] | None = None
        # Who follows changes, and who starts a container, do not plug the same interface.
        self._lock = asyncio.Lock()

    def again(self) -> PodNetwork:
        """The namespace for somebody else, who closes it. Raises NotFound: its path is gone."""
        return PodNetwork(self._pod.path)

    def look(self) -> list[Endpoint]:
        """The interfaces that a machine is to have now.

        Raises:
            KataError: the namespace is gone, or has what a machine cannot be given.
        """
        return endpoints(self._pod.look(), self._pod.path)

    async def fit(self, vm: VirtualMachine, agent: AgentClient, found: list[Endpoint] | None = None) -> None:
        """Plug in what is new, take back what has gone, and tell the guest what is different.

        Args:
            found: what `look` has given; None to look now.

        Raises:
            KataError: something cannot be looked at, joined, plugged, set up or taken back; what was done before stays.
        """
        async with self._lock:
            # An interface that has lost its addresses is kept: it may get others.
            found = self.look() if found is None else found
            # A card has left the namespace for the machine.
            here = {index for index, one in self._attached.items() if not one.endpoint.is_nic}
            gone = here - self._pod.indexes() if here else set()
            for index in gone:
                await self._take_back(index, vm)
            changed = [one for one in found if (has := self._attached.get(one.link.index)) is None or has.differs(one)]
            for endpoint in changed:
                has = self._attached.get(endpoint.link.index) or await self._plug(endpoint, vm)
                self._attached[endpoint.link.index] = replace(has, endpoint=endpoint)
                await agent.update_interface(interface_message(endpoint, has.path))
            if gone or changed:
                everything = [one.endpoint for one in self._attached.values()]
                await agent.update_routes(routes_message(everything))
                if any(endpoint.neighbours for endpoint in everything):
                    await agent.add_neighbours(neighbours_message(everything))

    def follow(self, vm: VirtualMachine, agent: AgentClient) -> None:
        """Have the machine follow the namespace from now on."""
        self._following = asyncio.create_task(self._follow(vm, agent), name=f"changes of {self._pod.path}")

    async def _follow(self, vm: VirtualMachine, agent: AgentClient) -> None:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        with self._pod.changes() as news:

            def note() -> None:
                news.drain()
                changed.set()

            loop.add_reader(news.fileno(), note)
            try:
                while True:
                    await changed.wait()
                    await asyncio.sleep(_SETTLE_S)
                    changed.clear()
                    try:
                        await self.fit(vm, agent)
                    except Unavailable:
                        return  # the machine has ended
                    except KataError as error:
                        log.warning("the guest does not follow its network: %s", error)
            finally:
                loop.remove_reader(news.fileno())

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

    async def end(self) -> None:
        """Follow and forward no more."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following})
        if self._forward is not None:
            await self._forward.close()

    def close(self) -> None:
        """Close the namespace. The interfaces are on the ledger."""
        self._pod.close()

    async def _plug(self, endpoint: Endpoint, vm: VirtualMachine) -> _Attached:
        link = endpoint.link
        if endpoint.is_nic:
            return _Attached(endpoint, await self._lend_nic(link))
        # As Kata: a queue for each processor, so that each sends and receives by itself.
        queues = min(self._vcpus, _QUEUES_MAX)
        held: tuple[tuple[str, str], ...] = ()
        if endpoint.is_tap:
            taps = self._pod.open_tap(endpoint, queues)
            if self._rates != NO_LIMIT:
                log.warning("%s is a device of taps already, whose rate is not limited", link.name)
        elif self._model == "macvtap":
            taps, held = self._take_over(endpoint, queues)
        else:
            taps, held = self._redirect(endpoint, queues)
        try:
            path = await vm.plug(NetworkDevice(id=endpoint.id, taps=taps, mac=link.mac, mtu=link.mtu))
        finally:
            _close(taps)  # the machine has its own copies now, or does without
        return _Attached(endpoint, path, held)

    def _redirect(self, endpoint: Endpoint, queues: int) -> _Joined:
        # Before anything is written down: the filters on an interface that another sandbox has are not ours to remove.
        taps = self._pod.open_tap(endpoint, queues)
        try:
            held = self._hold(NETWORK, endpoint.link.index)
            self._pod.join(endpoint, self._rates)
        except BaseException:
            _close(taps)
            raise
        return taps, (held,)

    def _take_over(self, endpoint: Endpoint, queues: int) -> _Joined:
        # Its number is nobody else's, so it can be written down before.
        index = number_of_macvtap()
        made = self._hold(INTERFACE, index)
        try:
            self._pod.make_macvtap(endpoint, index)
        except BaseException:
            self._ledger.drop(*made)
            raise
        return self._pod.open_macvtap(endpoint, index, queues), (made,)

    def _hold(self, kind: str, index: int) -> tuple[str, str]:
        entry = (kind, f"{self._pod.inode} {index} {self._pod.path}")
        self._ledger.hold(*entry)
        return entry

    async def _take_back(self, index: int, vm: VirtualMachine) -> None:
        """An interface has gone, and with it what was on it."""
        attached = self._attached.pop(index)
        for entry in attached.held:
            self._ledger.drop(*entry)
        log.info("interface %s has gone", attached.endpoint.link.name)
        await vm.unplug(attached.endpoint.id)


def _close(taps: tuple[int, ...]) -> None:
    for tap in taps:
        os.close(tap)
