"""What the host runs of the guest's suite; the whole is built in tests/vm/test_image_boot.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata.errors import Internal
from kata.osbuilder import host_programs, store
from kata.runtime.config.settings import HypervisorConfig
from kata.runtime.hypervisor.qemu import share

LISTED = """\
\tlinux-vdso.so.1 (0x00007f6174bc6000)
\tlibcap-ng.so.0 => {libraries}/libcap-ng.so.0 (0x00007f6174b9f000)
\t/lib64/ld-linux-x86-64.so.2 => {libraries}/ld-linux-x86-64.so.2 (0x00007f6174bc8000)
"""


def test_builder_and_runtime_agree_where_they_are() -> None:
    assert HypervisorConfig().host_programs == store.DEFAULT_ROOT / store.CURRENT / host_programs.DIRECTORY
    assert share._LOADER == host_programs.LOADER
    assert {share._VIRTIOFSD, share.SETPRIV} == set(host_programs.PROGRAMS)


def test_the_libraries_that_a_program_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = Path("/packages/lib")
    monkeypatch.setattr(host_programs, "run", lambda *_, **__: LISTED.format(libraries=libraries))
    assert host_programs.libraries_of(libraries / "ld", libraries, Path("setpriv")) == ["libcap-ng.so.0"]


@pytest.mark.parametrize("where", ["not found", "/lib/x86_64-linux-gnu/libcap-ng.so.0 (0x00007f6174b9f000)"])
def test_a_library_of_the_host_does_not_count(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(host_programs, "run", lambda *_, **__: f"\tlibcap-ng.so.0 => {where}\n")
    with pytest.raises(Internal, match=r"setpriv needs libcap-ng\.so\.0, which is in none of its packages"):
        host_programs.libraries_of(Path("/packages/lib/ld"), Path("/packages/lib"), Path("setpriv"))


def test_a_program_runs_by_its_own_loader_or_is_the_hosts() -> None:
    assert host_programs.command("mkfs.erofs", None) == ["mkfs.erofs"]
    loader, *options, program = host_programs.command("mkfs.erofs", Path("/tools"))
    assert (loader, program) == ("/tools/ld-linux-x86-64.so.2", "/tools/mkfs.erofs")
    assert options == ["--inhibit-cache", "--library-path", "/tools"]
