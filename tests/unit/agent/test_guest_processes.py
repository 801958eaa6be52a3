"""Processes in the guest itself: the program that copies files, and others only with the debug console."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kata.agent.guest_processes import GuestProcesses
from kata.agent.reaper import Reaper
from kata.archive.pack import pack
from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound, Unavailable
from kata.protocols import files

LIMIT_S = 60


class Guest:
    """This host as a guest, with one container whose root is a directory."""

    def __init__(self, reaper: Reaper, root: Path) -> None:
        self.config = SimpleNamespace(debug_console=False)
        self.processes = GuestProcesses(SimpleNamespace(reaper=reaper, config=self.config), self._container)  # type: ignore[arg-type]
        self.root = root

    def _container(self, container_id: str) -> Any:
        if container_id != "box":
            raise NotFound(f"container {container_id} does not exist")
        return SimpleNamespace(root=str(self.root))

    async def run(self, args: list[str], data: bytes = b"", **spec: Any) -> tuple[int, bytes, bytes]:
        """Run to the end: exit status, standard output, standard error."""
        await self.processes.exec("e", {"args": args, **spec})
        process = self.processes.process("e")
        outputs = [asyncio.create_task(self._all(name)) for name in ("stdout", "stderr")]
        assert process.stdio.stdin is not None
        if data:
            await process.stdio.stdin.write(data)
        await process.stdio.close_stdin()
        async with asyncio.timeout(LIMIT_S):
            status = await self.processes.wait("e")
            stdout, stderr = await asyncio.gather(*outputs)
        self.processes._forget("e", process)
        return status, stdout, stderr

    async def _all(self, stream: str) -> bytes:
        found = b""
        while data := await self.processes.read("e", stream, 1 << 20):
            found += data
        return found


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[Guest]:
    reaper = Reaper(fixed_addresses=False)
    reaper.start()
    root = tmp_path / "root"
    root.mkdir()
    yield Guest(reaper, root)
    reaper.stop()


def archive(directory: Path, name: str) -> bytes:
    out = io.BytesIO()
    fd = os.open(directory, os.O_PATH)
    pack(out, fd, name, name)
    os.close(fd)
    return out.getvalue()


async def test_files_out_of_a_container_and_into_it(guest: Guest, tmp_path: Path) -> None:
    (guest.root / "etc").mkdir()
    (guest.root / "etc/motd").write_text("hello")
    (guest.root / "absolute").symlink_to("/etc")
    status, sent, said = await guest.run(files.get_arguments("box", "/absolute/motd", "copy", follow=False))
    assert (status, files.Report.from_json(said)) == (0, files.Report())
    (tmp_path / "copy").write_text("hello")
    os.utime(tmp_path / "copy", ns=(1, (guest.root / "etc/motd").stat().st_mtime_ns))
    assert sent == archive(tmp_path, "copy")
    owner = os.getuid(), os.getgid()
    status, _, said = await guest.run(files.put_arguments("box", "/absolute", owner), sent + bytes(20_000))
    assert (status, files.Report.from_json(said)) == (0, files.Report())
    assert (guest.root / "etc/copy").read_text() == "hello"


async def test_attributes_are_sent_if_they_are_asked_for(guest: Guest) -> None:
    (guest.root / "file").touch()
    (guest.root / "odd").touch()
    try:
        os.setxattr(guest.root / "file", "user.note", b"1")
        os.setxattr(guest.root / "odd", "user.a=b", b"1")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    status, sent, said = await guest.run(files.get_arguments("box", "/", "", follow=False, attributes=True))
    assert (status, files.Report.from_json(said)) == (0, files.Report(plain=("odd",)))
    assert b"SCHILY.xattr.user.note=1" in sent
    _, sent, said = await guest.run(files.get_arguments("box", "/", "", follow=False))
    assert (b"SCHILY" in sent, files.Report.from_json(said)) == (False, files.Report())


@pytest.mark.parametrize(
    ("path", "kind", "target"),
    [
        ("/d", "directory", "directory"),
        ("/f", "file", "file"),
        ("/l", "link", "directory"),
        ("/out", "link", ""),
        ("/n", "", ""),
        ("/f/x", "", ""),
    ],
)
async def test_what_is_at_a_path(guest: Guest, path: str, kind: str, target: str) -> None:
    (guest.root / "d").mkdir()
    (guest.root / "f").touch()
    (guest.root / "l").symlink_to("d")
    (guest.root / "out").symlink_to("/usr/bin")
    status, told, _ = await guest.run(files.stat_arguments("box", path))
    assert (status, files.Found.from_json(told)) == (0, files.Found(kind, target))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (files.get_arguments("box", "/none", "x", follow=False), "there is no none"),
        (files.put_arguments("box", "/none", (0, 0)), "no such file"),
        (files.put_arguments("box", "/", (0, 0)), "broken tar"),
    ],
)
async def test_what_cannot_be_copied(guest: Guest, args: list[str], said: str) -> None:
    status, _, told = await guest.run(args, b"x" * 600)
    error = files.Report.from_json(told).error
    assert status == 1
    assert error is not None
    assert said in error.message


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        (["kata-files"], InvalidArgument),
        (["kata-files", "put", "box", "/"], InvalidArgument),
        (["kata-files", "get", "none", "/", "x", ""], NotFound),
        (["sh", "-c", "true"], FailedPrecondition),
    ],
)
async def test_what_is_not_run(guest: Guest, args: list[str], kind: type[KataError]) -> None:
    with pytest.raises(kind):
        await guest.processes.exec("e", {"args": args})


async def test_a_shell_with_the_debug_console(guest: Guest) -> None:
    guest.config.debug_console = True
    status, said, _ = await guest.run(["sh", "-c", "pwd; echo $A; exit 3"], env=["A=b"], cwd="/usr")
    assert (status, said) == (3, b"/usr\nb\n")
    with pytest.raises(NotFound, match="executable file not found"):
        await guest.processes.exec("f", {"args": ["/no/such/program"]})


async def test_a_terminal(guest: Guest) -> None:
    guest.config.debug_console = True
    await guest.processes.exec("e", {"args": ["sh", "-c", "stty size; read line; stty size"], "terminal": True})
    process = guest.processes.process("e")
    first = b""
    while b"\n" not in first:
        first += await guest.processes.read("e", "stdout", 100)
    assert b"0 0" in first
    process.stdio.resize(40, 120)
    assert process.stdio.stdin is not None
    await process.stdio.stdin.write(b"\n")
    rest = b""
    while b"40 120" not in rest:
        rest += await guest.processes.read("e", "stdout", 100)
    assert await guest.processes.wait("e") == 0
    process.stdio.close()


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"skipped": 3}', b'{"error": 3, "code": "x"}', b"[" * 100_000])
def test_a_hostile_report(text: bytes) -> None:
    for read in (files.Report.from_json, files.Found.from_json):
        with contextlib.suppress(Unavailable):
            assert len(repr(read(text))) < 200
