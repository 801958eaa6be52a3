"""A sandbox's network: the pod's interfaces are connected, hot-plugged, configured in the guest, and followed."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kata.errors import FailedPrecondition, InvalidArgument, KataError, Unavailable
from kata.linux.netlink import Netlink
from kata.linux.rtnetlink import Link
from kata.protocols import agent_pb2
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.hypervisor.base import VirtualMachine
from kata.runtime.hypervisor.devices import NetworkDevice
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import INTERFACE, NETWORK
from kata.runtime.network.endpoints import (
    NO_LIMIT,
    Endpoint,
    Rates,
    Snapshot,
    endpoints,
    interface_message,
    loopback_message,
    neighbours_message,
)
from kata.runtime.network.namespace import PodNetwork, random_index
from kata.runtime.network.port_forward import PortForward
from kata.runtime.network.routes import left_out, routes_message
from kata.runtime.network.sysctls import of_interface, of_namespace

log = logging.getLogger(__name__)

#: Seconds from a change until the namespace is looked at: changes come in groups.
_SETTLE_S = 0.3
#: Seconds from a failure until it is tried again, and how often at most.
_RETRY_S = 5.0
_RETRIES = 5
#: Pairs of queues; each takes two interrupts of the guest.
_MAX_QUEUES = 8


@dataclass(frozen=True)
class Seen:
    """A look at a namespace.

    Attributes:
        snapshot: what is in it.
        endpoints: the interfaces that a VM should have.
        sysctls: those that somebody has set, of the namespace as a whole.
    """

    snapshot: Snapshot
    endpoints: list[Endpoint]
    sysctls: Mapping[str, str]


@dataclass(frozen=True)
class _Attached:
    """An interface that the VM has.

    Attributes:
        endpoint: as it was configured in the guest.
        path: the device's PCI path in the guest.
        held: its ledger entries.
        configured: whether the guest has said so; if not, it has to be told again.
    """

    endpoint: Endpoint
    path: str
    held: tuple[tuple[str, str], ...] = ()
    configured: bool = False

    def differs(self, now: Endpoint) -> bool:
        """Whether the guest has to be reconfigured; the kernels' own state does not count."""
        return (
            not self.configured
            or interface_message(now, self.path) != interface_message(self.endpoint, self.path)
            or now.neighbours != self.endpoint.neighbours
        )


#: Descriptors for the VM, and their ledger entries.
_Joined = tuple[tuple[int, ...], tuple[tuple[str, str], ...]]


class SandboxNetwork:
    """The interfaces of a network namespace that a sandbox has.

    Args:
        path: the namespace's.
        ledger: the sandbox's.
        model: "tcfilter" or "macvtap".
        vcpus: the VM's.
        rates: limits of each interface.
        plug_nic: plugs a physical NIC, and returns its PCI path in the guest.

    Raises:
        NotFound, InvalidArgument: as `PodNetwork`, or the model does not support rates.
    """

    def __init__(
        self,
        path: str,
        ledger: Ledger,
        model: str,
        vcpus: int,
        rates: Rates,
        plug_nic: Callable[[Link], Awaitable[str]],
    ) -> None:
        if model == "macvtap" and rates != NO_LIMIT:
            raise InvalidArgument(
                "rate limits of macvtap interfaces are not supported", hint='set internetworking_model to "tcfilter"'
            )
        self._pod = PodNetwork(path)
        self._model = model
        self._vcpus = vcpus
        self._rates = rates
        self._plug_nic = plug_nic
        self._ledger = ledger
        self._attached: dict[int, _Attached] = {}
        #: Those that somebody has set in the namespace.
        self._sysctls: dict[str, str] = {}
        # What the guest has.
        self._loopback = loopback_message(Snapshot((), (), (), ()), {})
        self._routes = agent_pb2.Routes()
        self._forward: PortForward | None = None
        self._following: asyncio.Task[None] | None = None
        # The follower of changes and the start of a container must not plug the same interface.
        self._lock = asyncio.Lock()

    def again(self) -> PodNetwork:
        """Open the namespace once more; the caller closes it.

        Raises:
            NotFound: its path does not exist any more.
        """
        return PodNetwork(self._pod.path)

    def describe(self) -> list[dict[str, Any]]:
        """The interfaces that the VM has, for JSON."""
        return [
            {
                "name": one.endpoint.link.name,
                "mac": one.endpoint.link.mac,
                "mtu": one.endpoint.link.mtu,
                "addresses": [f"{address.address}/{address.prefix}" for address in one.endpoint.addresses],
                "guest_path": one.path,
            }
            for one in self._attached.values()
        ]

    def look(self) -> Seen:
        """What is in the namespace now, and the interfaces that the VM should have.

        Raises:
            InvalidArgument, FailedPrecondition: as `PodNetwork.look`.
            Unimplemented, InvalidArgument: as `endpoints`.
        """
        snapshot = self._pod.look()
        found = endpoints(snapshot, self._pod.path)
        # Whoever adds an interface sets them with it, and nothing tells of later changes.
        if any(one.link.index not in self._attached for one in found):
            self._sysctls = self._pod.sysctls()
        found = [replace(one, sysctls=of_interface(one.link.name, self._sysctls)) for one in found]
        return Seen(snapshot, found, of_namespace(self._sysctls))

    async def fit(self, vm: VirtualMachine, agent: AgentClient, seen: Seen | None = None) -> None:
        """Plug new interfaces, unplug those that are gone, and reconfigure the guest.

        Args:
            vm: the sandbox's.
            agent: the sandbox's.
            seen: from `look`; None to look now.

        Raises:
            KataError: a step failed; the steps before it stay.
        """
        async with self._lock:
            # An interface that has lost its addresses stays: it may get others.
            seen = seen or self.look()
            # A physical NIC is not in the namespace any more.
            here = {index for index, one in self._attached.items() if not one.endpoint.is_nic}
            gone = here - {link.index for link in seen.snapshot.links}
            for index in gone:
                await self._unplug(index, vm)
            changed = [
                one for one in seen.endpoints if (has := self._attached.get(one.link.index)) is None or has.differs(one)
            ]
            loopback = loopback_message(seen.snapshot, seen.sysctls)
            if loopback != self._loopback:
                await agent.update_interface(loopback)
                self._loopback = loopback
            for endpoint in changed:
                has = self._attached.get(endpoint.link.index) or await self._plug(endpoint, vm)
                self._attached[endpoint.link.index] = replace(has, endpoint=endpoint, configured=False)
                await agent.update_interface(interface_message(endpoint, has.path))
                self._attached[endpoint.link.index] = replace(has, endpoint=endpoint, configured=True)
            everything = [one.endpoint for one in self._attached.values()]
            routes = routes_message(seen.snapshot, everything)
            # An interface that is configured anew has lost its routes.
            if gone or changed or routes != self._routes:
                for route in left_out(seen.snapshot, everything):
                    log.warning("%s: the VM does not get the route %s", self._pod.path, route)
                await agent.update_routes(routes)
                self._routes = routes
            if changed and any(endpoint.neighbours for endpoint in everything):
                await agent.add_neighbours(neighbours_message(everything))

    def follow(self, vm: VirtualMachine, agent: AgentClient) -> None:
        """Follow changes of the namespace from now on.

        Raises:
            InvalidArgument: the namespace cannot be entered.
        """
        news = self._pod.changes()
        self._following = asyncio.create_task(self._follow(news, vm, agent), name=f"changes of {self._pod.path}")

    async def _follow(self, news: Netlink, vm: VirtualMachine, agent: AgentClient) -> None:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        failures = 0
        with news:

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
                        failures = 0
                    except Unavailable:
                        return  # the VM has ended
                    except KataError as error:
                        log.warning("cannot follow a change of the pod's network: %s", error)
                        failures += 1
                        if failures <= _RETRIES:
                            loop.call_later(_RETRY_S, changed.set)
            finally:
                loop.remove_reader(news.fileno())

    async def forward(self, agent: AgentClient) -> None:
        """Forward connections inside the namespace to the guest (`PortForward`).

        If the kernel does not support it, that is only logged: the pod's network works without.
        """
        try:
            self._forward = PortForward(agent, *self._pod.catch())
        except FailedPrecondition as error:
            log.info("no port-forward: %s", error.message)
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
            return _Attached(endpoint, await self._plug_nic(link))
        # As in Kata: a pair of queues for each vCPU.
        queues = min(self._vcpus, _MAX_QUEUES)
        held: tuple[tuple[str, str], ...] = ()
        if endpoint.is_tap:
            taps = self._pod.open_tap(endpoint, queues)
            if self._rates != NO_LIMIT:
                log.warning("%s is a tap device; its rate is not limited", link.name)
        elif self._model == "macvtap":
            taps, held = self._add_macvtap(endpoint, queues)
        else:
            taps, held = self._redirect(endpoint, queues)
        try:
            path = await vm.plug(NetworkDevice(id=endpoint.id, taps=taps, mac=link.mac))
        finally:
            _close(taps)  # the VMM has its own copies, or the plug failed
        return _Attached(endpoint, path, held)

    def _redirect(self, endpoint: Endpoint, queues: int) -> _Joined:
        # Before the ledger entry: the filters on an interface of another sandbox must not be removed.
        taps = self._pod.open_tap(endpoint, queues)
        try:
            held = self._hold(NETWORK, endpoint.link.index)
            self._pod.join(endpoint, self._rates)
        except BaseException:
            _close(taps)
            raise
        return taps, (held,)

    def _add_macvtap(self, endpoint: Endpoint, queues: int) -> _Joined:
        # Its index is unique, so it can be on the ledger before it exists.
        index = random_index()
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

    async def _unplug(self, index: int, vm: VirtualMachine) -> None:
        """Unplug an interface that is gone from the namespace, with its filters."""
        attached = self._attached.pop(index)
        for entry in attached.held:
            self._ledger.drop(*entry)
        log.info("interface %s is gone", attached.endpoint.link.name)
        await vm.unplug(attached.endpoint.id)


def _close(taps: tuple[int, ...]) -> None:
    for tap in taps:
        os.close(tap)
