"""The arguments of `kata run`, parsed into a frozen request. Pure: nothing is looked up or started."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kata.architecture import Architecture
from kata.errors import InvalidArgument
from kata.oci.ids import validate_id
from kata.oci.spec import LinuxResources, Mount

#: Bytes; with less a program fails before it can print why. Docker has the same minimum.
_MIN_MEMORY = 6 << 20
_MAX_MEMORY = 16 << 40
_MIN_CPUS = 0.01
_MAX_CPUS = 240
_CPU_PERIOD_US = 100_000

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,18})([bkmgt]?)", re.ASCII)
_CPUS = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})?", re.ASCII)


@dataclass(frozen=True)
class Volume:
    """A host path that is mounted in the container.

    Attributes:
        source: absolute, on the host.
        destination: absolute, in the container.
        readonly: whether the container may only read it.
    """

    source: str
    destination: str
    readonly: bool = False

    def mount(self) -> Mount:
        """Return the bind mount for the spec (runtime-spec, config.md, Mounts)."""
        return {
            "destination": self.destination,
            "type": "bind",
            "source": self.source,
            "options": ["rbind", "rro" if self.readonly else "rw"],
        }


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One `kata run`.

    Attributes:
        rootfs: a directory that is the root file system, or None.
        image: an image archive or layout directory, or None; exactly one of the two is set.
        architecture: of the image and its guest; None for that which the configuration is for.
        command: replaces the image's command; may be empty with an image.
        name: the sandbox's id, or None for a random one.
        env: (name, value) pairs, each name once.
        volumes: no two with the same destination.
        workdir: None for the image's.
        user: "name", "uid", "name:group"…, or None for the image's.
        cpus: CPU limit, 0 for none.
        memory: memory limit in bytes, 0 for none.
        network: name of a CNI network, or None for loopback only.
        interactive: whether standard input is forwarded.
        tty: whether the command gets a terminal.
        config: the configuration file, or None for the usual ones.
        debug: whether to print the plan.
    """

    rootfs: Path | None = None
    image: Path | None = None
    architecture: Architecture | None = None
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
        """Return the limits for the spec (runtime-spec, config-linux.md, Control groups)."""
        limits: LinuxResources = {}
        if self.memory:
            limits["memory"] = {"limit": self.memory}
        if self.cpus:
            limits["cpu"] = {"quota": math.ceil(self.cpus * _CPU_PERIOD_US), "period": _CPU_PERIOD_US}
        return limits


def split_words(words: Sequence[str], rootfs: Path | None) -> tuple[Path | None, tuple[str, ...]]:
    """Split the positional arguments into the image (None with a rootfs) and the command.

    Raises:
        InvalidArgument: there is no image, no command with a rootfs, or a word is not valid text.
    """
    rest = list(words)
    image = None
    if rootfs is None:
        if not rest or not rest[0]:
            raise InvalidArgument(
                "no image is given", hint="kata run IMAGE.tar -- COMMAND, or kata run --rootfs DIR -- COMMAND"
            )
        image = Path(rest.pop(0))
        if rest[:1] == ["--"]:
            rest.pop(0)
    elif not rest:
        raise InvalidArgument("no command is given", hint=f"kata run --rootfs {rootfs} -- COMMAND")
    for word in rest:
        _check_text("the command", word)
    return image, tuple(rest)


def parse_env(values: Sequence[str], environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Parse `NAME=VALUE`, or `NAME` for its value in `environ` (omitted without one). The last of a name wins.

    Raises:
        InvalidArgument: a variable has no name, or is not valid text.
    """
    found: dict[str, str] = {}
    for text in values:
        _check_text("--env", text)
        name, separator, value = text.partition("=")
        if not name or name != name.strip():
            raise InvalidArgument(f"--env {text!r} has no name", hint="write NAME=VALUE, or NAME to pass yours")
        if separator:
            found[name] = value
        elif name in environ:
            _check_text(f"--env {name}", environ[name])
            found[name] = environ[name]
    return tuple(found.items())


def parse_volumes(values: Sequence[str]) -> tuple[Volume, ...]:
    """Parse `SOURCE:DESTINATION[:ro|rw]` each; a source may be relative to the working directory.

    Raises:
        InvalidArgument: a volume is malformed, or two have the same destination.
    """
    volumes = tuple(_parse_volume(text) for text in values)
    seen: set[str] = set()
    for volume in volumes:
        if volume.destination in seen:
            raise InvalidArgument(f"--volume: two volumes have the destination {volume.destination}")
        seen.add(volume.destination)
    return volumes


def _parse_volume(text: str) -> Volume:
    _check_text("--volume", text)
    fields = text.split(":")
    if len(fields) not in (2, 3) or not all(fields):
        raise InvalidArgument(f"invalid --volume {text!r}", hint="write SOURCE:DESTINATION[:ro]")
    source, destination = fields[0], fields[1]
    mode = fields[2] if len(fields) == 3 else "rw"
    if mode not in ("ro", "rw"):
        raise InvalidArgument(f"--volume {text!r}: invalid mode {mode!r} (ro or rw)")
    if source[0] not in "./":
        raise InvalidArgument(
            f"--volume {text!r}: {source!r} is not a path", hint=f"write ./{source} for a path in the working directory"
        )
    if not destination.startswith("/") or ".." in destination.split("/"):
        raise InvalidArgument(f"--volume {text!r}: {destination!r} is not an absolute path without '..'")
    normal = os.path.normpath(destination)
    if normal in ("/", "//"):
        raise InvalidArgument(f"--volume {text!r}: a volume cannot be the root", hint="use --rootfs")
    return Volume(os.path.abspath(source), normal, mode == "ro")


def parse_memory(text: str) -> int:
    """Parse "256M", "1g", "512k" or a number of bytes, into bytes; units are powers of 1024.

    Raises:
        InvalidArgument: it is not a size, or out of range.
    """
    match = _SIZE.fullmatch(text.strip().lower().removesuffix("ib"))
    if match is None:
        raise InvalidArgument(f"--memory {text[:40]!r} is not a size", hint="write 256M or 2G")
    size = int(match[1]) * _UNITS[match[2]]
    if size < _MIN_MEMORY:
        raise InvalidArgument(f"--memory {text} is too small; the minimum is {_MIN_MEMORY >> 20}M")
    if size > _MAX_MEMORY:
        raise InvalidArgument(f"--memory {text} is too large; the maximum is {_MAX_MEMORY >> 40}T")
    return size


def parse_cpus(text: str) -> float:
    """Parse a number of CPUs, "2" or "0.5".

    Raises:
        InvalidArgument: it is not a number, or out of range.
    """
    if _CPUS.fullmatch(text.strip()) is None:
        raise InvalidArgument(f"--cpus {text[:40]!r} is not a number", hint="write 2 or 0.5")
    cpus = float(text)
    if not _MIN_CPUS <= cpus <= _MAX_CPUS:
        raise InvalidArgument(f"--cpus {text} is out of range ({_MIN_CPUS} to {_MAX_CPUS})")
    return cpus


def parse_workdir(text: str) -> str:
    """Check that the path, which is in the container, is absolute.

    Raises:
        InvalidArgument: it is relative, or not valid text.
    """
    _check_text("--workdir", text)
    if not text.startswith("/"):
        raise InvalidArgument(f"--workdir {text!r} is not an absolute path")
    return text


def parse_name(text: str) -> str:
    """Check a sandbox's id.

    Raises:
        InvalidArgument: it is invalid.
    """
    return validate_id(text, "--name")


def _check_text(what: str, text: str) -> None:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidArgument(f"{what}: {text[:60]!a} is not valid text")
