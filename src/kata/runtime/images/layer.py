"""One layer as a stream of tar bytes: decompressed, bounded, and compared with its digests at its end.

Sources: OCI image specification 1.1, layer.md ("+gzip", "+zstd" Media Types); RFC 1952 (gzip), RFC 8878 (Zstandard).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from kata import zstd
from kata.archive.tar import CHUNK, shown
from kata.errors import InvalidArgument, ResourceExhausted, Unimplemented
from kata.runtime.images.model import Layer

_GZIP = b"\x1f\x8b"
#: A frame, or one to be skipped, which some compressors write first.
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")
#: Memory that a frame may ask for: 2^27 bytes, which all levels of the zstd command stay below.
_ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 27}
_UNSUPPORTED = {b"\xfd7zX": "xz", b"BZh": "bzip2"}


class Budget:
    """Bytes that may still be unpacked, over all layers of an image."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._size = size

    def take(self, size: int) -> None:
        """Count `size` bytes.

        Raises:
            ResourceExhausted: they exceed what is left.
        """
        self._left -= size
        if self._left < 0:
            raise ResourceExhausted(
                f"image unpacks to more than {self._size} bytes", hint="raise the limit if the image is trusted"
            )


class _Watched(io.RawIOBase):
    """Hashes what passes through, and takes it from a budget."""

    def __init__(self, source: BinaryIO, digest: str, budget: Budget | None = None) -> None:
        algorithm, _, self._expected = digest.partition(":")
        self._hash = hashlib.new(algorithm)
        self._source = source
        self._budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        content = self._source.read(len(buffer))
        if self._budget is not None:
            self._budget.take(len(content))
        self._hash.update(content)
        memoryview(buffer)[: len(content)] = content
        return len(content)

    def matches(self) -> bool:
        return self._hash.hexdigest() == self._expected


@contextlib.contextmanager
def open_layer(layer: Layer, label: str, budget: Budget) -> Iterator[BinaryIO]:
    """The layer's tar stream. Leaving the block reads it to its end and checks the digests.

    Args:
        layer: to open.
        label: names it in errors.
        budget: that the uncompressed bytes are taken from.

    Raises:
        InvalidArgument: damaged, truncated, or not the layer that the image's configuration lists.
        ResourceExhausted: more bytes than the budget has.
        Unimplemented: compressed with something other than gzip or zstd.
    """
    with contextlib.ExitStack() as stack:
        stored = _Watched(stack.enter_context(layer.open()), layer.digest or layer.diff_id)
        buffered = io.BufferedReader(stored, CHUNK)
        plain = _Watched(_decompressed(buffered, buffered.peek(6), label), layer.diff_id, budget)
        stream = io.BufferedReader(plain, CHUNK)
        try:
            yield stream
            for rest in (stream, buffered):
                while rest.read(CHUNK):
                    pass
        except (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
            raise InvalidArgument(f"{label}: broken compressed stream: {str(error).lower()}") from error
        if layer.digest is not None and not stored.matches():
            raise InvalidArgument(f"{label} does not match its digest", hint="the archive is damaged: fetch it again")
        if not plain.matches():
            raise InvalidArgument(f"{label} does not match its diff_id {shown(layer.diff_id)}")


def _decompressed(stored: BinaryIO, head: bytes, label: str) -> BinaryIO:
    if head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=stored)  # type: ignore[return-value]
    if _ZSTD.match(head):
        return zstd.ZstdFile(stored, options=_ZSTD_OPTIONS)  # type: ignore[return-value]
    for magic, name in _UNSUPPORTED.items():
        if head.startswith(magic):
            raise Unimplemented(
                f"{label} is compressed with {name}, which is not supported",
                hint="recompress it: skopeo copy --dest-compress-format gzip oci-archive:IN oci-archive:OUT",
            )
    return stored
