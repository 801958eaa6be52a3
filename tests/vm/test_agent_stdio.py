"""Standard streams in a real guest: nothing lost, nothing blocked, terminals."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random

import pytest

from kata.errors import Code
from kata.protocols import agent_pb2 as pb
from kata.protocols import processes
from kata.ttrpc import StatusError
from tests.vm.guest import SHARED, Agent, container_spec

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]

_ids = (f"s{number}" for number in itertools.count())
ROOTFS = f"{SHARED}/base/rootfs"


async def test_four_megabytes_go_in_and_out_unchanged(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, container_spec(ROOTFS, "cat"))
    data = random.Random(1).randbytes(4 << 20)

    async def feed() -> None:
        for start in range(0, len(data), 1 << 18):
            chunk = data[start : start + (1 << 18)]
            assert await agent.write(container_id, chunk) == len(chunk)
        await agent.close_stdin(container_id)

    _, output = await asyncio.gather(feed(), agent.read_all(container_id))
    assert hashlib.sha256(output).digest() == hashlib.sha256(data).digest()
    assert await agent.wait(container_id) == 0
    await agent.remove(container_id)


async def test_a_write_waits_for_its_reader(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, container_spec(ROOTFS, "sleep", "1000"))
    write = asyncio.create_task(agent.write(container_id, bytes(2 << 20)))
    await asyncio.sleep(0.5)
    assert not write.done()
    # Meanwhile others are served.
    await agent.exec(container_id, "e1", "true")
    assert await agent.wait(container_id, "e1") == 0
    await agent.remove(container_id)
    with pytest.raises(StatusError):
        await write


async def test_empty_data_closes_stdin(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, container_spec(ROOTFS, "cat"))
    await agent.write(container_id, b"last")
    await agent.write(container_id, b"")
    assert await agent.read_all(container_id) == b"last"
    with pytest.raises(StatusError) as caught:
        await agent.write(container_id, b"later")
    assert caught.value.code == Code.FAILED_PRECONDITION
    await agent.remove(container_id)


async def test_a_read_is_no_longer_than_asked(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, container_spec(ROOTFS, "echo", "abcdef"))
    assert await agent.read(container_id, size=4) == b"abcd"
    assert await agent.read_all(container_id) == b"ef\n"
    assert await agent.read(container_id) == b""
    await agent.remove(container_id)


async def test_a_child_that_holds_the_pipe_holds_the_end(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, container_spec(ROOTFS, "sleep", "1000"))
    await agent.exec(container_id, "e1", "sh", "-c", "(sleep 1; echo late) & echo now")
    assert await agent.wait(container_id, "e1") == 0, "but not the exit"
    drained = asyncio.create_task(agent.of_output(processes.DRAINED, container_id, "e1"))
    assert await agent.read(container_id, "e1") == b"now\n"
    await asyncio.wait_for(drained, 60)
    assert await asyncio.wait_for(agent.read_all(container_id, "e1"), 60) == b"late\n"
    await agent.remove(container_id)


async def test_output_that_is_given_up(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, container_spec(ROOTFS, "sleep", "1000"))
    await agent.exec(container_id, "e1", "sh", "-c", "(busybox yes; echo $? >/tmp/status) & exit 3")
    assert await agent.wait(container_id, "e1") == 3
    await agent.of_output(processes.RELEASE, container_id, "e1")
    assert await agent.read_all(container_id, "e1") == b""
    await agent.exec(container_id, "e2", "sh", "-c", "until cat /tmp/status 2>/dev/null; do busybox usleep 10000; done")
    assert await asyncio.wait_for(agent.read_all(container_id, "e2"), 60) == b"141\n", "it was ended by SIGPIPE"
    await agent.remove(container_id)


async def test_a_terminal(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, container_spec(ROOTFS, "sh", terminal=True))
    await agent.rpc.TtyWinResize(pb.TtyWinResizeRequest(container_id=container_id, row=33, column=77))
    await agent.write(container_id, b"stty size; exit 6\n")
    output = await agent.read_all(container_id)
    assert b"33 77" in output
    assert await agent.read(container_id, stderr=True) == b""
    assert await agent.wait(container_id) == 6
    await agent.remove(container_id)


async def test_an_exec_with_a_terminal(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, container_spec(ROOTFS, "sleep", "1000"))
    await agent.exec(container_id, "t1", "sh", "-c", "test -t 0 && test -t 1 && echo yes", terminal=True)
    assert await agent.read_all(container_id, "t1") == b"yes\r\n"
    assert await agent.wait(container_id, "t1") == 0
    with pytest.raises(StatusError) as caught:
        await agent.rpc.TtyWinResize(pb.TtyWinResizeRequest(container_id=container_id, row=1, column=1))
    assert caught.value.code == Code.UNAVAILABLE
    await agent.remove(container_id)


async def test_a_broken_pipe_ends_a_writer(agent: Agent) -> None:
    """SIGPIPE must have its default action, which Python's runtime takes from its children."""
    container_id = next(_ids)
    await agent.run(container_id, container_spec(ROOTFS, "sh", "-c", "busybox yes | head -n 1; echo end"))
    assert await agent.read_all(container_id) == b"y\nend\n"
    await agent.remove(container_id)


async def test_output_outlives_its_process(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, container_spec(ROOTFS, "head", "-c", "50000", "/dev/zero"))
    assert await agent.wait(container_id) == 0
    await asyncio.sleep(0.7)
    assert len(await agent.read_all(container_id)) == 50000
    await agent.remove(container_id)


async def test_a_program_that_cannot_be_executed_says_so_in_plain_text(agent: Agent) -> None:
    container_id = next(_ids)
    await agent.run(container_id, container_spec(ROOTFS, "sleep", "1000"))
    await agent.exec(container_id, "e1", "sh", "-c", "echo '#!/no/such' > /tmp/program; chmod 755 /tmp/program")
    assert await agent.wait(container_id, "e1") == 0
    await agent.exec(container_id, "e2", "/tmp/program")
    assert await agent.wait(container_id, "e2") == 1
    said = await agent.read_all(container_id, "e2", stderr=True)
    assert said.startswith(b"exec")
    assert said.endswith(b": No such file or directory\n")
    await agent.remove(container_id)
    other_id = next(_ids)
    await agent.run(other_id, container_spec(ROOTFS, "/tmp/program"))
    assert await agent.wait(other_id) == 1
    assert b"`/tmp/program`: No such file or directory\n" in await agent.read_all(other_id, stderr=True)
    await agent.remove(other_id)
