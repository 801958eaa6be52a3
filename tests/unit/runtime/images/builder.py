"""Images made by hand, honest and otherwise: tar layers as bytes, archives in both formats."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kata import zstd
from kata.runtime.images.archive import open_archive
from kata.runtime.images.model import UnpackLimits
from kata.runtime.images.unpack import unpack


def entry(name: str, data: bytes | None = None, **fields: Any) -> tuple[tarfile.TarInfo, bytes | None]:
    """A file with `data`, or what `type` (a tarfile constant) says; other fields as TarInfo has them."""
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    if data is not None:
        info.size = len(data)
    return info, data


def directory(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes | None]:
    return entry(name, None, **({"type": tarfile.DIRTYPE, "mode": 0o755} | fields))


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes | None]:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes | None]:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def layer(*entries: tuple[tarfile.TarInfo, bytes | None], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data or b""))
    return buffer.getvalue()


def zstd_compress(content: bytes, *, window_log: int = 0) -> bytes:
    """A zstd frame that does not tell its length beforehand, like one that was compressed from a pipe.

    Args:
        window_log: logarithm of the memory that the frame asks for (RFC 8878, 3.1.1.1.2); 0 for what it needs.
    """
    compressor = zstd.ZstdCompressor()
    frame = bytearray(compressor.compress(content) + compressor.flush())
    if window_log:
        frame[5] = (window_log - 10) << 3
    return bytes(frame)


def skippable(content: bytes) -> bytes:
    """A frame that zstd passes over (RFC 8878, 3.1.2): zstd:chunked keeps its table of contents in one."""
    return b"\x50\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def image_config(layers: Iterable[bytes], **changes: Any) -> dict[str, Any]:
    return {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Entrypoint": ["/e"], "Cmd": ["c"], "Env": ["A=1"], "User": "u", "WorkingDir": "/w"},
        "rootfs": {"type": "layers", "diff_ids": [sha256(content) for content in layers]},
    } | changes


class Oci:
    """The files of an OCI image layout; change them before `write`."""

    def __init__(self, *layers: bytes, compress: Callable[[bytes], bytes] = bytes, **config: Any) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
        stored = [compress(content) for content in layers]
        self.manifest = {
            "schemaVersion": 2,
            "config": self.blob(json.dumps(image_config(layers, **config)).encode(), "config.v1"),
            "layers": [self.blob(content, "layer.v1.tar") for content in stored],
        }
        self.descriptors = [self.blob(json.dumps(self.manifest).encode(), "manifest.v1")]

    def blob(self, content: bytes, kind: str) -> dict[str, Any]:
        digest = sha256(content)
        self.files["blobs/" + digest.replace(":", "/")] = content
        return {
            "mediaType": f"application/vnd.oci.image.{kind}+json",
            "digest": digest,
            "size": len(content),
        }

    def complete(self) -> dict[str, bytes]:
        index = {"schemaVersion": 2, "manifests": self.descriptors}
        return {"index.json": json.dumps(index).encode(), **self.files}

    def write(self, path: Path) -> Path:
        return write_tar(path, self.complete())


def docker_files(*layers: bytes, **config: Any) -> dict[str, bytes]:
    """What `docker save` wrote before it wrote layouts."""
    text = json.dumps(image_config(layers, **config)).encode()
    name = hashlib.sha256(text).hexdigest() + ".json"
    paths = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": name, "RepoTags": ["example:1"], "Layers": paths}]
    return {name: text, **dict(zip(paths, layers, strict=True)), "manifest.json": json.dumps(manifest).encode()}


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(layer(*(entry(name, content) for name, content in files.items())))
    return path


def write_directory(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def unpacked(tmp_path: Path, *layers: bytes, limits: UnpackLimits | None = None) -> Path:
    """The directory that an image of these layers unpacks to."""
    target = tmp_path / "jail/target"
    target.parent.mkdir(exist_ok=True)
    with open_archive(Oci(*layers).write(tmp_path / "image.tar")) as image:
        unpack(image, target, limits or UnpackLimits())
    return target
