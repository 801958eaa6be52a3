"""Telling containerd 2 by what Go has written into the running program."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata.shim import caller
from kata.shim.caller import build_info, is_containerd_2

INFO = (
    b"\xff Go buildinf:\x08\x02"
    + b"\0" * 16
    + b"\x08go1.27.1\x60path\tgithub.com/containerd/containerd%s/cmd/containerd\n"
)
V2 = INFO % b"/v2"
V1 = INFO % b""


def program(*sections: tuple[bytes, bytes]) -> bytes:
    """An ELF file with these sections, and that of their names."""
    names = b"\0" + b"".join(name + b"\0" for name, _ in sections) + b".shstrtab\0"
    contents = [*(content for _, content in sections), names]
    body, headers, at = b"", b"\0" * 64, 64
    for (name, _), content in zip([*sections, (b".shstrtab", b"")], contents, strict=True):
        where = names.index(name + b"\0")
        headers += struct.pack("<IIQQQQIIQQ", where, 1, 0, 0, at, len(content), 0, 0, 1, 0)
        body += content
        at += len(content)
    start = b"\x7fELF\x02\x01\x01".ljust(0x28, b"\0") + struct.pack(
        "<QIHHHHHH", at, 0, 64, 0, 0, 64, len(contents) + 1, len(contents)
    )
    return start + body + headers


def read(tmp_path: Path, content: bytes) -> bytes:
    path = tmp_path / "program"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        return build_info(fd)
    finally:
        os.close(fd)


def test_the_section_is_found_among_others(tmp_path: Path) -> None:
    assert read(tmp_path, program((b".text", b"\x90" * 99), (b".go.buildinfo", V2), (b".data", b"x"))) == V2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"#!/bin/sh\n" * 10,
        program((b".text", b"\x90")),
        program((b".go.buildinfo.more", V2)),
        program((b".go.buildinfo", V2))[:64],
        program((b".go.buildinfo", V2)).replace(b"\x7fELF\x02", b"\x7fELF\x01"),
    ],
    ids=["empty", "script", "not-go", "other", "cut", "32-bit"],
)
def test_programs_without_it(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == b""


@given(st.binary(max_size=128), st.integers(0, 300))
def test_any_file_can_be_read(noise: bytes, at: int) -> None:
    whole = bytearray(program((b".go.buildinfo", V1)))
    whole[at : at + len(noise)] = noise
    fd = os.memfd_create("program")
    try:
        os.write(fd, whole)
        assert isinstance(build_info(fd), bytes)
    finally:
        os.close(fd)


@pytest.mark.parametrize(("info", "newer"), [(V2, True), (V1, False), (b"", False)], ids=["2", "1", "not-go"])
def test_the_major_version_is_in_the_path(monkeypatch: pytest.MonkeyPatch, info: bytes, newer: bool) -> None:
    monkeypatch.setattr(caller, "build_info", lambda _: info)
    assert is_containerd_2(os.getpid()) is newer


def test_programs_that_are_none() -> None:
    assert not is_containerd_2(os.getpid())
    assert not is_containerd_2(0), "a parent outside of the PID namespace"
    assert not is_containerd_2(1 << 22), "no such process"


@pytest.mark.skipif(shutil.which("containerd") is None, reason="needs containerd")
def test_a_real_one_tells_its_path() -> None:
    with open(shutil.which("containerd") or "", "rb") as file:
        assert b"path\tgithub.com/containerd/containerd/" in build_info(file.fileno())
