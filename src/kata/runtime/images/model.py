"""An image, whatever format its archive has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self


@dataclass(frozen=True)
class ImageConfig:
    """How to run the image by default (OCI image specification, config.md).

    Attributes:
        user: "", "user", "uid", "user:group", "uid:gid" or a mixture; see kata.runtime.images.user.
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Layer:
    """One change set: a tar stream, possibly compressed.

    Attributes:
        name: of the file in the archive.
        diff_id: the digest of the uncompressed tar.
        digest: the digest of the stored bytes, or None where the archive has none (docker-archive).
        open: returns a new stream of the stored bytes, which the caller closes.
    """

    name: str
    diff_id: str
    digest: str | None
    open: Callable[[], BinaryIO]


@dataclass(frozen=True)
class Image:
    """An opened image. A context manager: the archive stays open as long as layers may be read.

    Attributes:
        origin: path of the archive.
        digest: of the manifest (OCI) or of the configuration (docker-archive, which has no digest of its own).
        layers: lowest first.
    """

    origin: str
    digest: str
    config: ImageConfig
    layers: tuple[Layer, ...]
    close: Callable[[], None]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class UnpackLimits:
    """Limits of what an image may unpack to.

    Attributes:
        entries: files, directories and everything else, over all layers.
        size: bytes of all layers, uncompressed.
    """

    entries: int = 1_000_000
    size: int = 32 * 1024**3
