"""Containers that were begun before anybody asked for them, as in every VM that comes from a template."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kata.protocols import agent_pb2 as pb
from kata.ttrpc import StatusError
from tests.vm.guest import SHARED, Agent, Guest, container_spec, make_rootfs, sandboxed

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]

ROOTFS = f"{SHARED}/base/rootfs"


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    for guest in sandboxed("agent.warm_up"):
        make_rootfs(guest.share, "base")
        yield guest


async def test_a_hook_sees_the_bundle_that_the_host_knows(agent: Agent) -> None:
    wanted = container_spec(ROOTFS, "sleep", "100")
    script = "cat >/run/kata-containers/seen"
    wanted["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
    await agent.run("hooked", wanted)
    reader = container_spec(ROOTFS, "cat", "/seen")
    reader["mounts"].append(
        {"destination": "/seen", "type": "bind", "source": "/run/kata-containers/seen", "options": ["bind", "ro"]}
    )
    await agent.run("reader", reader)
    assert b'"bundle":"/run/kata-containers/hooked"' in (await agent.read_all("reader")).replace(b" ", b"")
    await agent.remove("hooked")
    await agent.remove("reader")


async def test_more_than_were_begun(agent: Agent) -> None:
    """Whichever way one was made: its streams, its exit code, more processes, limits, and its end."""
    for number in range(4):
        name = f"ahead-{number}"  # as crun calls them, nearly
        await agent.run(name, container_spec(ROOTFS, "sh", "-c", "cat; hostname >&2; exit 3"))
        await agent.exec(name, "more", "sh", "-c", "echo $((6 * 7)); exit 4")
        assert await agent.read_all(name, "more") == b"42\n"
        assert await agent.wait(name, "more") == 4
        limits = pb.UpdateContainerRequest(container_id=name)
        limits.resources.Pids.Limit = 17
        await agent.rpc.UpdateContainer(limits, timeout=60)
        await agent.write(name, b"through\n")
        await agent.close_stdin(name)
        assert await agent.read_all(name) == b"through\n"
        assert await agent.read_all(name, stderr=True) == b"pod\n"
        assert await agent.wait(name) == 3
        await agent.remove(name)


async def test_the_next_process_is_begun_when_one_has_ended(agent: Agent) -> None:
    """Each has its own arguments, user and streams; one with a terminal, a missing program and the end do not mind."""
    await agent.run("probed", container_spec(ROOTFS, "sleep", "100"))
    for number in range(4):
        name = f"e{number}"
        user = {"uid": number, "gid": number}
        await agent.exec("probed", name, "sh", "-c", f"cat; id -u; exit {number}", user=user)
        await agent.write("probed", b"in ", exec_id=name)
        await agent.close_stdin("probed", exec_id=name)
        assert await agent.read_all("probed", name) == f"in {number}\n".encode()
        assert await agent.wait("probed", name) == number
        await asyncio.sleep(0.5)  # now the next one waits
        if number == 1:
            await agent.exec("probed", "tty", "sh", "-c", "test -t 0 && echo yes", terminal=True)
            assert await agent.read_all("probed", "tty") == b"yes\r\n"
        if number == 2:
            with pytest.raises(StatusError, match="executable file not found"):
                await agent.exec("probed", "none", "nowhere")
    await agent.remove("probed")


async def test_a_terminal(agent: Agent) -> None:
    await agent.run("terminal", container_spec(ROOTFS, "sh", "-c", "test -t 0 && echo yes; exit 5", terminal=True))
    assert await agent.read_all("terminal") == b"yes\r\n"
    assert await agent.wait("terminal") == 5
    await agent.remove("terminal")
