"""The project's fragments and patches, the user's, and the number of the configuration.

`fragments/*.conf` by purpose, in the order of FRAGMENTS; `patches/*.patch` in the order of their names.
`config_version.txt` is counted up with each change of a fragment, and is part of the release: `uname -r` in a guest
says by which configuration its kernel was built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from kata.errors import InvalidArgument, NotFound
from kata.kernel_build.options import MAX_TEXT, join, parse

FRAGMENTS = (
    *("base", "virtio", "file-systems", "network", "netfilter", "containers", "security"),
    *("devices", "memory-hotplug", "bpf", "time", "crypto"),
)


@dataclass(frozen=True, slots=True)
class Patch:
    """A patch to the kernel's sources.

    Attributes:
        name: of the file.
        content: in the unified format, for `patch -p1`.
    """

    name: str
    content: bytes


def config_version() -> int:
    """The number of the project's configuration."""
    return int(files(__package__).joinpath("config_version.txt").read_text())


def options(own: Sequence[Path] = ()) -> dict[str, str]:
    """The options of the project's fragments, and then those of the user's.

    Args:
        own: the user's fragments, each of which may change what was set before it.

    Raises:
        NotFound: there is no such file.
        InvalidArgument: a fragment is not understood, or two contradict each other.
    """
    here = files(__package__).joinpath("fragments")
    parts = {f"{name}.conf": parse(here.joinpath(f"{name}.conf").read_text(), f"{name}.conf") for name in FRAGMENTS}
    parts |= {str(path): parse(_read(path).decode(errors="replace"), str(path)) for path in own}
    return join(parts, replace=[str(path) for path in own])


def whole(config: Path, own: Sequence[Path] = ()) -> dict[str, str]:
    """The options of a whole configuration of the user's, and then those of fragments. Raises as `options` does."""
    parts = {str(path): parse(_read(path).decode(errors="replace"), str(path)) for path in (config, *own)}
    return join(parts, replace=[str(path) for path in own])


def patches(own: Path | None = None) -> tuple[Patch, ...]:
    """The project's patches, and then those of the user's directory.

    Args:
        own: has `*.patch` files.

    Raises:
        NotFound: the directory does not exist, or has no patch.
        InvalidArgument: a patch is larger than a patch is.
    """
    here = files(__package__).joinpath("patches")
    found = [Patch(file.name, file.read_bytes()) for file in here.iterdir() if file.name.endswith(".patch")]
    found.sort(key=lambda patch: patch.name)
    if own is not None:
        paths = sorted(own.glob("*.patch"))
        if not paths:
            raise NotFound(f"{own} has no *.patch file" if own.is_dir() else f"{own} is not a directory")
        found += [Patch(path.name, _read(path)) for path in paths]
    return tuple(found)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT + 1)
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MAX_TEXT:
        raise InvalidArgument(f"{path} is larger than {MAX_TEXT >> 20} MiB")
    return content
