"""Programs of the guest's suite that run on the host, so that every host has the same ones, whatever its release.

They are virtiofsd, which is not the same program in every release, and a setpriv that can load a filter of system
calls; and those that write an image, which would differ with their version. They run through the dynamic loader and
with the libraries of their own suite:

    host/ld-linux-x86-64.so.2 --inhibit-cache --library-path host host/virtiofsd …

Who runs the first two: `kata.runtime.hypervisor.qemu.share`. Reference: ld.so(8).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from kata.architecture import HOST
from kata.command import run
from kata.errors import Internal
from kata.osbuilder.commands import pipe

#: Below the image's directory.
DIRECTORY = "host"
LOADER = Path(HOST.loader).name
PROGRAMS = {"virtiofsd": "usr/libexec/virtiofsd", "setpriv": "usr/bin/setpriv"}
#: The licenses of everything in the directory, one after the other.
LICENSES = "copyright"

_LIBRARIES = Path("usr/lib", HOST.libraries)
#: A library by its name; the loader itself is listed by its path.
_LISTED = re.compile(r"^\s+([^/\s]+) => (\S+|not found)", re.MULTILINE)
#: For one tool; all of them take a second on an idle host.
_TOOL_TIMEOUT_S = 120.0


def install(debs: Sequence[Path], target: Path, programs: Mapping[str, str]) -> None:
    """Take programs, and just the libraries that they load, from their packages.

    Args:
        debs: the packages.
        target: the directory to make; its parent is also used for temporary files.
        programs: name to path in the packages.

    Raises:
        Internal: a program or library is not in the packages.
        ResourceExhausted, DeadlineExceeded, OSError: as `commands.pipe`.
    """
    root = target.with_name(f"{target.name}-packages")
    root.mkdir()
    target.mkdir()
    for deb in debs:
        pipe(
            ["dpkg-deb", "--fsys-tarfile", str(deb)],
            ["tar", "--extract", "--no-same-owner", "--keep-directory-symlink", f"--directory={root}"],
            timeout=_TOOL_TIMEOUT_S,
        )
    libraries = root / _LIBRARIES
    files = {LOADER: libraries / LOADER}
    for name, program in programs.items():
        files[name] = root / program
        files |= {
            library: libraries / library for library in libraries_of(libraries / LOADER, libraries, root / program)
        }
    for name, path in files.items():
        shutil.copyfile(path, target / name)
        (target / name).chmod(0o555)
    licenses = sorted(root.glob("usr/share/doc/*/copyright"))
    text = "\n".join(f"==== {path.parent.name} ====\n{path.read_text(errors='replace')}" for path in licenses)
    (target / LICENSES).write_text(text)
    shutil.rmtree(root)


def check(directory: Path) -> None:
    """See that each program runs with what is there.

    Raises:
        Internal: one does not.
    """
    for name in PROGRAMS:
        run([*command(name, directory), "--version"], timeout=_TOOL_TIMEOUT_S)


def command(name: str, directory: Path | None) -> list[str]:
    """How a program is run.

    Args:
        name: of the program.
        directory: that `install` has made; None for the host's own program.
    """
    if directory is None:
        return [name]
    return [str(directory / LOADER), "--inhibit-cache", "--library-path", str(directory), str(directory / name)]


def libraries_of(loader: Path, libraries: Path, program: Path, emulator: Path | None = None) -> list[str]:
    """The names of the libraries that a program loads.

    Args:
        loader: the dynamic loader.
        libraries: the directory of all libraries.
        program: the program.
        emulator: runs the loader, if it is for another architecture than the host's.

    Raises:
        Internal: one is not among `libraries`.
    """
    command = [str(loader), "--inhibit-cache", "--library-path", str(libraries), "--list", str(program)]
    if emulator:
        command.insert(0, str(emulator))
    found = _LISTED.findall(run(command, timeout=_TOOL_TIMEOUT_S))
    for name, where in found:
        if Path(where).parent != libraries:
            raise Internal(f"{program.name} needs {name}, which is in none of its packages")
    return [name for name, _ in found]
