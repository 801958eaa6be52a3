from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kata.agent.transports import Address, listen, parse
from kata.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("virtio-serial://kata.rpc", Address("virtio-serial", "kata.rpc")),
        ("vsock://-1:1024", Address("vsock", "-1", 1024)),
        ("unix:///run/x.sock", Address("unix", "/run/x.sock")),
        ("unix://@name", Address("unix", "@name")),
    ],
)
def test_forms(text: str, address: Address) -> None:
    assert parse(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix://",
        "unix://relative",
        "vsock://3:1024",
        "vsock://-1",
        "vsock://-1:x",
        "vsock://-1:4294967295",
        "tcp://x:1",
    ],
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid agent address") as caught:
        parse(text)
    assert caught.value.hint


@pytest.mark.parametrize("form", ["unix://{}", "unix://@{}"])
async def test_listening_on_a_unix_socket(tmp_path: Path, form: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(10))
        writer.close()

    path = f"{tmp_path}/s"
    close = await listen(form.format(path), serve)
    reader, writer = await asyncio.open_unix_connection("\0" + path if "@" in form else path)
    writer.write(b"ping")
    assert await reader.read() == b"ping"
    writer.close()
    await writer.wait_closed()
    close()
    await asyncio.sleep(0)
    assert not (tmp_path / "s").exists()


async def test_a_path_that_cannot_be_bound(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...

    with pytest.raises(OSError):
        await listen(f"unix://{tmp_path}/none/s", serve)
