"""Images and archives: tar, layers in their compressions, the documents of an image, and what a copy brings."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from typing import Any

from kata.archive.extract import extract
from kata.archive.tar import BLOCK, TarReader
from kata.errors import (
    FailedPrecondition,
    InvalidArgument,
    KataError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unimplemented,
)
from kata.runtime.images.archive import open_archive
from kata.runtime.images.model import Image, ImageConfig, Layer, UnpackLimits
from kata.runtime.images.unpack import NotSeparate, unpack
from kata.runtime.images.user import resolve_user
from tests.fuzz.target import scratch, target

_LIMITS = UnpackLimits(entries=1000, size=1 << 20)


def _summed(data: bytes) -> bytes:
    """A tar stream with right checksums, which changed bytes hardly ever have."""
    found = bytearray(data)
    for start in range(0, len(data) - BLOCK + 1, BLOCK):
        if found[start + 257 : start + 262] == b"ustar":
            found[start + 148 : start + 156] = b" " * 8
            found[start + 148 : start + 156] = b"%06o\0 " % sum(found[start : start + BLOCK])
    return bytes(found)


@target(InvalidArgument, Unimplemented, share=8)
def tar(data: bytes) -> object:
    """A tar stream."""
    stream = _summed(data)
    for seek in (False, True):
        for sparse in (False, True):
            try:
                reader = TarReader(io.BytesIO(stream), "layer", seek=seek, sparse=sparse)
                for count, entry in enumerate(reader):
                    assert count < len(stream) // BLOCK
                    assert "\0" not in entry.name
                    assert sum(map(len, reader.chunks())) <= len(stream)
            except (InvalidArgument, Unimplemented):
                continue
    return None


def _layer(data: bytes) -> Layer:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return Layer("layer", digest, digest, lambda: io.BytesIO(data))


def _image(*layers: Layer) -> Image:
    return Image("image", layers[0].diff_id, ImageConfig(), layers, lambda: None)


@target(KataError, share=2)
def layers(data: bytes) -> object:
    """Layers of an image, unpacked over each other and each by itself; none gets out."""
    jail = scratch("layers")
    stream = _summed(data)
    half = len(stream) // BLOCK // 2 * BLOCK
    image = _image(_layer(stream[:half]), _layer(stream[half:]))
    refused: KataError | None = None
    for only in (None, 1):
        try:
            unpack(image, jail / "root", _LIMITS, only=only)
        except NotSeparate:
            pass
        except KataError as error:
            refused = error
        finally:
            shutil.rmtree(jail / "root", ignore_errors=True)
        assert os.listdir(jail) == []
    if refused:
        raise refused
    return None


@target(InvalidArgument, ResourceExhausted, Unimplemented)
def compressed_layer(data: bytes) -> object:
    """A compressed layer, whose digests are those of what there is."""
    jail = scratch("compressed")
    try:
        unpack(_image(_layer(data)), jail / "root", _LIMITS)
    finally:
        shutil.rmtree(jail / "root", ignore_errors=True)
    return None


@target(InvalidArgument, FailedPrecondition, ResourceExhausted, Unimplemented, share=2)
def copied_files(data: bytes) -> object:
    """What `kata cp` gets from a container; nothing gets out of its destination."""
    jail = scratch("copied")
    (jail / "into").mkdir()
    into = os.open(jail / "into", os.O_PATH | os.O_DIRECTORY)
    try:
        extract(io.BytesIO(_summed(data)), into, "archive", owner=None if data[:1] < b"\x80" else (0, 0))
    finally:
        os.close(into)
        shutil.rmtree(jail / "into")
        assert os.listdir(jail) == []
    return None


@target(InvalidArgument, NotFound, PermissionDenied, is_document=True, share=2)
def image_documents(data: bytes) -> object:
    """The documents of an image: index, manifest, configuration, and those of `docker save`."""
    try:
        parts: Any = json.loads(data)
        files = {name: json.dumps(parts[name]).encode() for name in ("oci-layout", "index.json", "manifest.json")}
        config, manifest = (json.dumps(parts[name]).encode() for name in ("config", "manifest"))
    except (ValueError, TypeError, KeyError, RecursionError):
        files = {"oci-layout": b'{"imageLayoutVersion": "1.0"}', "index.json": data, "manifest.json": data}
        config = manifest = data
    digest = _named(config, files, b"CONFIG")
    _named(manifest.replace(b"CONFIG", digest), files, b"MANIFEST")
    jail = scratch("documents")
    try:
        for name, content in files.items():
            path = jail / "image" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        refused: KataError | None = None
        for newest in (True, False):
            if not newest:
                (jail / "image/oci-layout").unlink()
            try:
                with open_archive(jail / "image") as image:
                    str(image)
            except (InvalidArgument, NotFound) as error:
                refused = error
        if refused:
            raise refused
    finally:
        shutil.rmtree(jail / "image")
    return None


def _named(content: bytes, files: dict[str, bytes], word: bytes) -> bytes:
    """Put a blob to the files, and its digest where its word stands in the others."""
    digest = b"sha256:" + hashlib.sha256(content).hexdigest().encode()
    for name in files:
        files[name] = files[name].replace(word, digest)
    files["blobs/" + digest.decode().replace(":", "/")] = content
    return digest


@target(InvalidArgument, share=2)
def image_user(data: bytes) -> object:
    """The user of an image, by its own /etc/passwd and /etc/group."""
    root = scratch("user")
    user, _, table = data.partition(b"\n")
    (root / "etc").mkdir(exist_ok=True)
    for name in ("passwd", "group"):
        (root / "etc" / name).write_bytes(table)
    return resolve_user(root, os.fsdecode(user))
