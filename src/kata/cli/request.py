"""What the user asked `kata run` for, as words in and one frozen request out. Nothing is touched or started here."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kata.errors import InvalidArgument
from kata.oci.ids import validate_id
from kata.oci.spec import LinuxResources, Mount

#: Bytes; below this no program gets far enough to say what it lacks (Docker's bound, too).
MINIMUM_MEMORY = 6 << 20
MAXIMUM_MEMORY = 16 << 40
MAXIMUM_CPUS = 240
CPU_PERIOD_US = 100_000

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,18})([bkmgt]?)", re.ASCII)
_CPUS = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})?", re.ASCII)


@dataclass(frozen=True)
class Volume:
    """A host path in the container.

    Attributes:
        source: absolute, on the host.
        destination: absolute, in the container.
    """

    source: str
    destination: str
    readonly: bool = False

    def mount(self) -> Mount:
        return {
            "destination": self.destination,
            "type": "bind",
            "source": self.source,
            "options": ["rbind", "ro" if self.readonly else "rw"],
        }


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One `kata run`.

    Attributes:
        rootfs: a directory that is the root file system, or None.
        image: an image archive or layout directory, or None; exactly one of the two is set.
        command: replaces the image's command; may be empty with an image.
        name: the sandbox's id, or None for one of our choice.
        env: (name, value) pairs, each name once.
        workdir: None for the image's.
        user: "name", "uid", "name:group"…, or None for the image's.
        cpus: how much of how many CPUs, 0 for no limit.
        memory: bytes, 0 for no limit.
        network: the name of a network of CNI's, or None for loopback only.
        interactive: whether standard input is passed on.
        tty: whether the command gets a terminal.
    """

    rootfs: Path | None = None
    image: Path | None = None
    command: tuple[str, ...] = ()
    name: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    volumes: tuple[Volume, ...] = ()
    workdir: str | None = None
    user: str | None = None
    cpus: float = 0.0
    memory: int = 0
    network: str | None = None
    interactive: bool = False
    tty: bool = False
    config: Path | None = None
    debug: bool = False

    def resources(self) -> LinuxResources:
        """The limits, as the OCI specification writes them."""
        limits: LinuxResources = {}
        if self.memory:
            limits["memory"] = {"limit": self.memory}
        if self.cpus:
            limits["cpu"] = {"quota": math.ceil(self.cpus * CPU_PERIOD_US), "period": CPU_PERIOD_US}
        return limits


def split_words(words: Sequence[str], rootfs: Path | None) -> tuple[Path | None, tuple[str, ...]]:
    """The positional words: the image (not with a rootfs) and the command.

    Raises:
        InvalidArgument: there is nothing to run.
    """
    rest = list(words)
    image = None
    if rootfs is None:
        if not rest or not rest[0]:
            raise InvalidArgument(
                "there is no image to run", hint="kata run IMAGE.tar -- COMMAND, or kata run --rootfs DIR -- COMMAND"
            )
        image = Path(rest.pop(0))
        if rest[:1] == ["--"]:
            rest.pop(0)
    elif not rest:
        raise InvalidArgument("there is no command to run", hint=f"kata run --rootfs {rootfs} -- COMMAND")
    for word in rest:
        _no_nul("the command", word)
    return image, tuple(rest)


def parse_env(values: Sequence[str], environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """`NAME=VALUE`, or `NAME` for the value that `environ` has (none: left out). The last of a name wins.

    Raises:
        InvalidArgument: no name, or a NUL.
    """
    found: dict[str, str] = {}
    for text in values:
        _no_nul("--env", text)
        name, separator, value = text.partition("=")
        if not name or name != name.strip():
            raise InvalidArgument(f"--env {text!r} has no name", hint="write NAME=VALUE, or NAME to pass yours on")
        if separator:
            found[name] = value
        elif name in environ:
            found[name] = environ[name]
    return tuple(found.items())


def parse_volumes(values: Sequence[str]) -> tuple[Volume, ...]:
    """`SOURCE:DESTINATION[:ro|rw]` each; a source may be relative to the working directory.

    Raises:
        InvalidArgument: not of that form, or two on one destination.
    """
    volumes = tuple(_parse_volume(text) for text in values)
    seen: set[str] = set()
    for volume in volumes:
        if volume.destination in seen:
            raise InvalidArgument(f"two volumes on {volume.destination}")
        seen.add(volume.destination)
    return volumes


def _parse_volume(text: str) -> Volume:
    _no_nul("--volume", text)
    fields = text.split(":")
    if len(fields) not in (2, 3) or not all(fields):
        raise InvalidArgument(f"--volume {text!r} is not SOURCE:DESTINATION[:ro]")
    source, destination = fields[0], fields[1]
    mode = fields[2] if len(fields) == 3 else "rw"
    if mode not in ("ro", "rw"):
        raise InvalidArgument(f"--volume {text!r}: {mode!r} is neither ro nor rw")
    if source[0] not in "./":
        raise InvalidArgument(
            f"--volume {text!r}: {source!r} is not a path", hint=f"for a file or directory here, write ./{source}"
        )
    if not destination.startswith("/") or ".." in destination.split("/"):
        raise InvalidArgument(f"--volume {text!r}: {destination!r} is not an absolute path without '..'")
    normal = os.path.normpath(destination)
    if normal in ("/", "//"):
        raise InvalidArgument(f"--volume {text!r}: a volume cannot be the root", hint="use --rootfs")
    return Volume(os.path.abspath(source), normal, mode == "ro")


def parse_memory(text: str) -> int:
    """Bytes from "256M", "1g", "512k" or a plain number; units are powers of 1024.

    Raises:
        InvalidArgument: not a size, or out of bounds.
    """
    match = _SIZE.fullmatch(text.strip().lower().removesuffix("ib"))
    if match is None:
        raise InvalidArgument(f"--memory {text[:40]!r} is not a size", hint="write 256M or 2G")
    size = int(match[1]) * _UNITS[match[2]]
    if size < MINIMUM_MEMORY:
        raise InvalidArgument(f"--memory {text} is too little, the minimum is {MINIMUM_MEMORY >> 20}M")
    if size > MAXIMUM_MEMORY:
        raise InvalidArgument(f"--memory {text} is too much, the maximum is {MAXIMUM_MEMORY >> 40}T")
    return size


def parse_cpus(text: str) -> float:
    """CPUs from "2" or "0.5".

    Raises:
        InvalidArgument: not a number, or out of bounds.
    """
    if _CPUS.fullmatch(text.strip()) is None:
        raise InvalidArgument(f"--cpus {text[:40]!r} is not a number", hint="write 2 or 0.5")
    cpus = float(text)
    if not 0.01 <= cpus <= MAXIMUM_CPUS:
        raise InvalidArgument(f"--cpus {text} is out of bounds, expected 0.01 to {MAXIMUM_CPUS}")
    return cpus


def parse_workdir(text: str) -> str:
    """An absolute path in the container.

    Raises:
        InvalidArgument: it is relative.
    """
    _no_nul("--workdir", text)
    if not text.startswith("/"):
        raise InvalidArgument(f"--workdir {text!r} is not an absolute path")
    return text


def parse_name(text: str) -> str:
    """A sandbox's id.

    Raises:
        InvalidArgument: no valid one.
    """
    return validate_id(text, "--name")


def _no_nul(what: str, text: str) -> None:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidArgument(f"{what}: {text[:60]!a} is not valid text")
