from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kata.agent_ctl.address import Address, connect, parse
from kata.errors import InvalidArgument, Unavailable


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("unix:///run/x", Address("unix:///run/x", "/run/x")),
        ("unix://@/tmp/x", Address("unix://@/tmp/x", "@/tmp/x")),
        ("UNIX://@x", Address("UNIX://@x", "@x")),
        ("vsock://3:1024", Address("vsock://3:1024", cid=3, port=1024)),
        ("vsock://-1:1", Address("vsock://-1:1", cid=socket.VMADDR_CID_ANY, port=1)),
        ("vsock://:1", Address("vsock://:1", cid=socket.VMADDR_CID_ANY, port=1)),
    ],
)
def test_addresses(text: str, wanted: Address) -> None:
    assert parse(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "x", "unix://", "unix://x", "unix:/x", "vsock://3", "vsock://3:", "vsock://x:1", "vsock://3:-1",
     "vsock://4294967296:1", "vsock://3:4294967295", "vsock://٣:1", "tcp://127.0.0.1:1", "virtio-serial://x"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid server address"):
        parse(text)


def test_hybrid_vsock_is_a_unix_socket_and_a_port() -> None:
    assert parse("unix:///x", 1024) == Address("unix:///x", "/x", port=1024)
    with pytest.raises(InvalidArgument, match="needs the VMM's Unix socket"):
        parse("vsock://3:1", 1024)
    with pytest.raises(InvalidArgument, match="port 0 is out of range"):
        parse("unix:///x", 0)


@contextlib.asynccontextmanager
async def vmm(path: Path, answer: bytes) -> AsyncIterator[list[bytes]]:
    """A VMM that answers to CONNECT, and then passes on what the agent says."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(answer)
        await writer.drain()
        if answer.startswith(b"OK"):
            await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(serve, str(path)):
        yield asked


async def test_a_vmm_is_asked_for_the_port(tmp_path: Path) -> None:
    """Nothing of what follows its line is taken away from the agent's first frame."""
    path = tmp_path / "clh.sock"
    async with vmm(path, b"OK 1073741824\n") as asked:
        async with await connect(parse(f"unix://{path}", 1024)) as client:
            assert not client.closed
            assert asked == [b"CONNECT 1024\n"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"", "it has closed the connection"), (b"NO\n", r"it answers b'NO\\n'"), (b"OK " + b"1" * 5000, "it answers")],
)
async def test_a_vmm_that_refuses(tmp_path: Path, answer: bytes, said: str) -> None:
    path = tmp_path / "clh.sock"
    async with vmm(path, answer):
        with pytest.raises(Unavailable, match=f"no hybrid vsock connection to port 7: {said}") as caught:
            await connect(parse(f"unix://{path}", 7))
    assert len(caught.value.message) < 400


async def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"cannot connect to unix:///.*: no such file or directory"):
        await connect(parse(f"unix://{tmp_path}/x"))
