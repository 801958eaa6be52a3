"""The network of a sandbox for which nobody has made a network namespace: its VMM's, in which nothing is at first.

Docker, `ctr run --cni` and nerdctl put interfaces there between create and start, or later. Most sandboxes never get
one, so until something changes there is just a socket that would tell. The kernel queues its messages before the call
that causes them returns: what an engine has done before it asks for a start is known at the start.

Imports little, for the sandboxes that never get one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kata.errors import FailedPrecondition, KataError, Unavailable
from kata.linux.namespaces import CLONE_NEWNET, inside
from kata.linux.netdev import set_up
from kata.linux.netlink import GROUPS_ALL, Netlink
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.hypervisor.base import VirtualMachine

if TYPE_CHECKING:
    from kata.runtime.network.namespace import PodNetwork
    from kata.runtime.network.sandbox_network import SandboxNetwork

log = logging.getLogger(__name__)


class OwnNetwork:
    """The network namespace of a VMM, and what comes into it; its loopback interface is brought up.

    Args:
        vm: the VM, which runs.
        open_: makes the `SandboxNetwork` of the namespace at a path.

    Raises:
        FailedPrecondition: the VM has ended, or the kernel refuses to enter its namespace.
    """

    def __init__(self, vm: VirtualMachine, open_: Callable[[str], SandboxNetwork]) -> None:
        self._vm = vm
        self._open = open_
        self._network: SandboxNetwork | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                with inside(fd, CLONE_NEWNET):
                    set_up("lo")
                    self._news = Netlink(GROUPS_ALL)
            finally:
                os.close(fd)
        except OSError as error:
            raise FailedPrecondition(f"network namespace {self.path}: {error.strerror}") from error

    @property
    def path(self) -> str:
        """Where the namespace is for as long as the VM runs, and where a container engine finds it."""
        return f"/proc/{self._vm.pid}/ns/net"

    def again(self) -> PodNetwork:
        """Open the namespace once more; the caller closes it. Raises as `PodNetwork`."""
        from kata.runtime.network.namespace import PodNetwork

        return PodNetwork(self.path)

    def describe(self) -> list[dict[str, Any]]:
        """As `SandboxNetwork.describe`."""
        return self._network.describe() if self._network else []

    def follow(self, vm: VirtualMachine, agent: AgentClient) -> None:
        """Plug what comes into the namespace from now on."""
        asyncio.get_running_loop().add_reader(self._news.fileno(), self._note, vm, agent)

    def _note(self, vm: VirtualMachine, agent: AgentClient) -> None:
        asyncio.get_running_loop().remove_reader(self._news.fileno())
        self._beginning = asyncio.create_task(self._begin_unasked(vm, agent), name="first interface of the sandbox")

    async def _begin_unasked(self, vm: VirtualMachine, agent: AgentClient) -> None:
        try:
            await self._begin(vm, agent)
        except Unavailable:
            return  # the VM has ended
        except KataError as error:
            log.warning("cannot follow a change of the sandbox's network: %s", error)

    async def fit(self, vm: VirtualMachine, agent: AgentClient) -> None:
        """Have in the guest what is in the namespace now.

        Args:
            vm: the sandbox's.
            agent: the sandbox's.

        Raises:
            KataError: as `SandboxNetwork.fit`.
        """
        if self._network is not None or self._beginning is not None or self._news.pending():
            await self._begin(vm, agent)

    async def _begin(self, vm: VirtualMachine, agent: AgentClient) -> None:
        async with self._lock:
            if self._network is None:
                network = self._network = self._open(self.path)
                network.follow(vm, agent)
                await network.forward(agent)
        await self._network.fit(vm, agent)

    async def end(self) -> None:
        """Follow and forward no more."""
        asyncio.get_running_loop().remove_reader(self._news.fileno())
        if self._beginning is not None:
            self._beginning.cancel()
            await asyncio.wait({self._beginning})
        if self._network is not None:
            await self._network.end()

    def close(self) -> None:
        """Close the namespace: it is gone when the VMM has ended, too."""
        self._news.close()
        if self._network is not None:
            self._network.close()
