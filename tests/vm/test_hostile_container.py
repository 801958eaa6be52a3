"""What a hostile container does to its guest: the agent, and the other containers of the pod, go on."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from kata.oci import edit
from kata.oci.default import default_spec
from kata.protocols import health_pb2
from kata.ttrpc import StatusError
from tests.vm.guest import SHARED, Agent, Guest

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(120)]

ROOTFS = f"{SHARED}/base/rootfs"
NEIGHBOUR = "neighbour"
#: For an answer of the agent beside what the container does.
ANSWER_S = 30.0

#: Tries each word as a file to write to, and says whether it could.
WRITE = 'for f in {files}; do (echo {value} >$f) 2>/dev/null && echo "$f was written" ; done; echo done'
SYS = (
    "/sys/kernel/uevent_helper /sys/power/state /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/cgroup.freeze "
    "/sys/fs/cgroup/cgroup.kill /sys/fs/cgroup/memory.max /sys/bus/pci/rescan /sys/class/net/lo/mtu "
    "/sys/devices/system/cpu/cpu0/online /sys/module/printk/parameters/time"
)

#: What a container runs as root with the capabilities that engines give, and with what it may end.
CASES: dict[str, tuple[str, int | None]] = {
    "writes to /sys": (WRITE.format(files=SYS, value="1"), 0),
    "signals to PID 1": ("for s in 1 2 3 9 15 19; do busybox kill -$s 1; busybox kill -$s -1; done; echo done", None),
    "mounts": (
        "for d in /proc /sys /dev /tmp /; do busybox mount -t tmpfs x $d 2>/dev/null && echo $d was mounted; done; "
        "busybox umount -l /proc 2>/dev/null && echo /proc was unmounted; busybox chroot /proc/1/root true; echo done",
        0,
    ),
    "takes all memory": ("busybox tail /dev/zero", 137),
    "many files": ("i=0; while [ $i -lt 1000 ]; do : >/dev/shm/$i; i=$((i+1)); done; echo done", 0),
    "output without a reader": ("busybox yes | busybox head -c 3000000", None),
    "looks for sockets": ("busybox grep -c @ /proc/net/unix && echo an abstract socket was found; echo done", 0),
}


def spec(*command: str, **changes: Any) -> dict[str, Any]:
    """As an engine and the host make it, without the mounts that the host brings."""
    made: Any = default_spec(command, rootfs=ROOTFS, hostname="pod", **changes)
    made["linux"]["namespaces"] = [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network")]
    whole: Any = edit.for_guest(made, rootfs=ROOTFS, keep_seccomp=True)
    return dict(whole)


async def neighbour_lives(agent: Agent) -> None:
    """Check the agent, and run something in the other container, which is begun with the first call."""
    async with asyncio.timeout(2 * ANSWER_S):
        await agent.health.Check(health_pb2.CheckRequest(), timeout=ANSWER_S)
        try:
            await agent.exec(NEIGHBOUR, "look", "echo", "alive")
        except StatusError:
            await agent.run(NEIGHBOUR, spec("sleep", "1000"))
            await agent.exec(NEIGHBOUR, "look", "echo", "alive")
        assert await agent.read_all(NEIGHBOUR, "look") == b"alive\n"
        assert await agent.wait(NEIGHBOUR, "look") == 0


@pytest.mark.parametrize("case", CASES)
async def test_the_pod_goes_on(agent: Agent, guest: Guest, case: str) -> None:
    script, status = CASES[case]
    begun = len(guest.console)
    await neighbour_lives(agent)
    container = f"hostile-{list(CASES).index(case)}"
    await agent.run(container, spec("sh", "-c", script))
    if status is not None:
        async with asyncio.timeout(60):
            said = await agent.read_all(container)
            assert await agent.wait(container) == status
        assert not re.search(rb"was \w+", said), said.decode(errors="replace")
        assert status != 0 or said.endswith(b"done\n")
    await neighbour_lives(agent)
    await agent.remove(container)
    await neighbour_lives(agent)
    said_by_guest = guest.console[begun:]
    assert "Traceback" not in said_by_guest
    assert "Kernel panic" not in said_by_guest
    assert guest.running


async def test_the_neighbour_was_there_all_the_time(agent: Agent) -> None:
    """It has not been begun anew in between."""
    with pytest.raises(StatusError, match="already"):
        await agent.create(NEIGHBOUR, spec("true"))
    await agent.remove(NEIGHBOUR)
