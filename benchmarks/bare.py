"""QEMU alone with the VM of a sandbox, and a sandbox's start: from the execution to the agent's answer."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kata.errors import DeadlineExceeded, Internal
from kata.oci.convert import to_proto
from kata.oci.default import default_spec
from kata.protocols import agent_pb2
from kata.runtime.agent_client.client import AgentClient
from kata.runtime.config.loader import load
from kata.runtime.hypervisor import accel, factory
from kata.runtime.hypervisor.base import VirtualMachine, VmPlan
from kata.runtime.hypervisor.qemu.command import CONSOLE_FD, MEMORY_FD, QMP_FD, RESTORE_FD, STATE_FD, command_line
from kata.runtime.hypervisor.qemu.process import restore_commands
from kata.runtime.hypervisor.template.template import Template, description, key_of, open_template
from kata.runtime.launch.host import look_at_host
from kata.runtime.launch.vm_plan import AGENT_CHANNEL, as_template, plan_vm
from kata.ttrpc.connection import Connection, Role
from kata.ttrpc.envelope import Request

#: Generous: other work on the host may hold a boot back for a minute, and only a VM that hangs may fail by it.
_BOOT_TIMEOUT_S = 300.0
_SCRIPT_TIMEOUT_S = 120.0
#: The id of sandbox and container in a bare VM.
_BARE = "bare"


def default_plan(directory: Path, configuration: Path | None = None) -> VmPlan:
    """Return the plan of the VM of a sandbox without limits, its file server included.

    Args:
        directory: of the sandbox.
        configuration: file to use instead of the host's.
    """
    for name in ("shared", "root"):
        (directory / name).mkdir(exist_ok=True)
    config = load(configuration).config
    accelerator = asyncio.run(accel.choose_for(config.hypervisor)).name
    return plan_vm(_BARE, directory, {}, config, look_at_host(config.hypervisor, accelerator))


def template_of(plan: VmPlan) -> Template:
    """Open the template from which sandboxes of this plan are restored; the caller closes it.

    Raises:
        KataError: it does not exist.
    """
    return open_template(load().config.factory.template_path, key_of(description(as_template(plan))))


@contextmanager
def bare_vm(plan: VmPlan, saved: Template | None = None) -> Iterator[tuple[int, float]]:
    """A VM whose agent answers: booted, or restored from a template.

    Yields:
        QEMU's process id, and the seconds from its execution to the answer to a health check.

    Raises:
        Internal: QEMU ended before.
        DeadlineExceeded: the agent did not answer.
    """
    how = "restored" if saved else "booted"
    with ExitStack() as stack:
        ends = {name: socket.socketpair() for name in (QMP_FD, CONSOLE_FD, RESTORE_FD, *plan.channels)}
        for ours, theirs in ends.values():
            stack.callback(ours.close)
            stack.callback(theirs.close)
        fds = {name: theirs.fileno() for name, (_, theirs) in ends.items()}
        if saved:
            fds |= {MEMORY_FD: saved.memory, STATE_FD: saved.state}
            os.lseek(saved.state, 0, os.SEEK_SET)
        begin = time.perf_counter()
        process = subprocess.Popen(command_line(plan, fds), pass_fds=tuple(fds.values()), stdin=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.kill)
        if saved:
            ends[RESTORE_FD][0].sendall("\n".join(map(json.dumps, restore_commands(saved.state))).encode())
        channel = ends[AGENT_CHANNEL][0]
        channel.settimeout(_BOOT_TIMEOUT_S)
        channel.sendall(Connection(Role.CLIENT).request(Request("grpc.Health", "Check"))[1])
        try:
            answer = channel.recv(1)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the agent of a bare VM that was {how} did not answer within {_BOOT_TIMEOUT_S:.0f} s"
            ) from None
        if not answer:
            raise Internal(f"bare QEMU, {how}, ended before the agent answered")
        yield process.pid, time.perf_counter() - begin


def bare_seconds(plan: VmPlan, saved: Template | None = None) -> float:
    """Return the seconds from QEMU's execution to the agent's answer; see `bare_vm`."""
    with bare_vm(plan, saved) as (_, seconds):
        return seconds


def answered(config: Path) -> float:
    """Return the seconds from the execution of `benchmarks.answer` to the answer of its sandbox's agent.

    Raises:
        Internal: the process failed.
    """
    begin = time.time()
    command = [sys.executable, "-m", "benchmarks.answer", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_BOOT_TIMEOUT_S)
    if done.returncode != 0:
        raise Internal(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
    return float(done.stdout) - begin


def run_bare(plan: VmPlan, script: str, prepare: Callable[[VirtualMachine, AgentClient], Awaitable[None]]) -> str:
    """Run a shell script in the guest's own root, in a VM without a sandbox; return its output.

    The VM is restored from the template, as those of sandboxes are: memory that is mapped from a file behaves
    differently.

    Args:
        plan: of the VM.
        script: for sh(1).
        prepare: called when the agent answers, before the script runs.

    Raises:
        Internal: the script failed.
        KataError: the VM failed.
    """
    with template_of(plan) as saved:
        return asyncio.run(_run_bare(plan, saved, script, prepare))


async def _run_bare(
    plan: VmPlan, saved: Template, script: str, prepare: Callable[[VirtualMachine, AgentClient], Awaitable[None]]
) -> str:
    vm = factory.restore(plan, memory=saved.memory, state=saved.state)
    try:
        await vm.start()
        agent = await AgentClient.connect(vm.channel(AGENT_CHANNEL))
        await agent.check(_BOOT_TIMEOUT_S)
        await agent.create_sandbox(agent_pb2.CreateSandboxRequest(sandbox_id=_BARE))
        await prepare(vm, agent)
        spec = default_spec(["/bin/sh", "-c", script], rootfs="/", hostname="")
        # The guest's root has its own mounts, and every device may be used.
        spec["mounts"] = [{"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs"}]
        spec["linux"] |= {"maskedPaths": [], "readonlyPaths": [], "resources": {}}
        request = agent_pb2.CreateContainerRequest(container_id=_BARE, OCI=to_proto(spec))
        await agent.create_container(request, timeout=_BOOT_TIMEOUT_S)
        await agent.start_container(_BARE)
        async with asyncio.timeout(_SCRIPT_TIMEOUT_S):
            status = await agent.wait_process(_BARE, "")
        output = await agent.read_stdout(_BARE, "")
        if status:
            raise Internal(f"{script} in a bare VM ended with status {status}: {output.decode(errors='replace')}")
        return output.decode()
    finally:
        await vm.stop(0)
