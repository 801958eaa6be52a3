"""A guest of its own for `--vm`: booted or restored as a sandbox's is, and gone with this process.

Its agent has no sandbox yet. The requests that it gets by themselves are those of the runtime; the files of containers
are mounted into the shared tree before they are created, and unmounted after they are removed.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from google.protobuf.message import Message

from kata import ttrpc
from kata.errors import InvalidArgument
from kata.loop.off import off_loop
from kata.oci.ids import validate_id
from kata.oci.spec import Bundle, Spec
from kata.protocols import agent_pb2
from kata.runtime.config.settings import Config
from kata.runtime.hypervisor import accel
from kata.runtime.launch.bring_up import Progress
from kata.runtime.launch.host import look_at_host
from kata.runtime.launch.sandbox_vm import SandboxVm, obtain_vm
from kata.runtime.launch.timings import Timings
from kata.runtime.launch.vm_plan import plan_vm
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import PROCESS
from kata.runtime.sandbox import requests
from kata.runtime.storage.container_files import ContainerPlan, plan_container
from kata.runtime.storage.host_mounts import on_host
from kata.runtime.storage.host_paths import look_at_paths, shm_size

_CONSOLE_LINES = 3


class VmLink:
    """The connection to the agent of a VM that is this process's own."""

    def __init__(self, guest: SandboxVm, config: Config, spec: Spec) -> None:
        self._guest = guest
        self._config = config
        self._spec = spec
        self._files: dict[str, ContainerPlan] = {}
        self._shared: set[str] = set()
        self._fresh = ""

    @property
    def client(self) -> ttrpc.Client:
        """Implement Link."""
        return self._guest.agent.client

    def create_sandbox(self, sandbox_id: str) -> agent_pb2.CreateSandboxRequest:
        """Implement Guest: with the shared tree and /dev/shm."""
        return requests.create_sandbox_request(sandbox_id, self._spec, self._config, shm_size(self._spec))

    def create_container(self, container_id: str, bundle: Bundle) -> agent_pb2.CreateContainerRequest:
        """Implement Guest: as the runtime would, without devices of the host.

        Raises:
            InvalidArgument: the id cannot be a path, or the spec asks for what a VM cannot have.
            NotFound: the source of a mount does not exist.
        """
        try:
            validate_id(container_id, "container id")
        except InvalidArgument as error:
            raise InvalidArgument(error.message, hint="-n sends an id as it is, and shares no files for it") from None
        share, rootfs = self._guest.share, str(bundle.rootfs)
        host = on_host(partial(look_at_paths, rootfs_dir=rootfs), bundle.spec)
        if container_id not in self._shared:
            share.remove(container_id)  # what an earlier request of that id has claimed
        files = plan_container(
            container_id,
            bundle.spec.get("mounts") or (),
            host,
            rootfs=(),
            rootfs_dir=rootfs,
            name=share.new_name,
            exports=share.exports(),
        )
        if container_id not in self._shared:
            share.claim(files)
            self._files[container_id] = files
        return requests.create_container_request(container_id, bundle.spec, files, self._config)

    async def before(self, request: Message) -> None:
        """Implement Link: mount the files of a container, unless another of that id has them."""
        self._fresh = ""
        if isinstance(request, agent_pb2.CreateContainerRequest):
            name = request.container_id
            if name in self._files and name not in self._shared:
                await off_loop(self._guest.share.add, self._files[name])
                self._shared.add(name)
                self._fresh = name

    async def after(self, request: Message, *, done: bool) -> None:
        """Implement Link: unmount the files of a container that is not there."""
        gone = "" if done else self._fresh
        if isinstance(request, agent_pb2.RemoveContainerRequest) and done:
            gone = request.container_id
        if gone in self._shared:
            await off_loop(self._guest.share.remove, gone)
            self._shared.discard(gone)

    def last_words(self) -> str | None:
        """Implement Link: the end of the console."""
        lines = self._guest.vm.console_tail(_CONSOLE_LINES).split("\n")
        said = " | ".join(line.strip() for line in lines if line.strip())
        return f"the guest's console ends with: {said}" if said else None

    async def close(self) -> None:
        """Implement Link: end the VM."""
        self._guest.slot.release()
        await self._guest.vm.stop(0)
        await self._guest.agent.close()


async def boot(config: Config, ledger: Ledger, bundle: Bundle | None, progress: Progress) -> VmLink:
    """Start a VM, and connect to its agent.

    Args:
        config: of the VM.
        ledger: of a state directory, whose mount namespace this process has entered; the caller releases it.
        bundle: whose limits the VM has the size for; None for the default size.
        progress: called with a sentence about each step that takes seconds.

    Raises:
        VmLaunchError: it did not come up.
        NotFound: the VMM or the guest image is not installed.
        InvalidArgument: a limit of the bundle is impossible.
    """
    spec: Spec = bundle.spec if bundle else {}
    directory = Path(ledger.directory)
    accelerator = await accel.choose_for(config.hypervisor)
    host = look_at_host(config.hypervisor, accelerator.name)
    # Not the bundle's network namespace: nothing of it would be in the guest.
    plan = replace(plan_vm(directory.name, directory, spec, config, host), network="")
    ledger.hold(PROCESS, ledger.directory)
    guest = await obtain_vm(plan, config, ledger, Timings(directory, time.monotonic()), progress=progress)
    return VmLink(guest, config, spec)
