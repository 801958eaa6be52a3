"""Small images without a registry: busybox as an OCI archive for containerd and `kata run`."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from kata.architecture import HOST, Architecture
from kata.osbuilder import cpio, store
from kata.runtime.images.model import ImageConfig

BUSYBOX = "docker.io/library/busybox:latest"

_EPOCH = "1970-01-01T00:00:00Z"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
_GROUP = "root:x:0:\nnogroup:x:65534:\n"


def busybox_archive(out: Path, name: str = BUSYBOX, command: tuple[str, ...] = ("sh",)) -> Path:
    """Write an OCI archive whose only program is busybox.

    Args:
        out: path of the archive.
        name: see `write_oci_archive`.
        command: the image's.

    Returns:
        `out`.

    Raises:
        NotFound: no guest image has been built.
    """
    rootfs = out.with_name(out.name + ".rootfs")
    rootfs.mkdir(parents=True)
    try:
        busybox_rootfs(rootfs)
        return write_oci_archive(rootfs, ImageConfig(cmd=command, env=(_PATH,)), out, name)
    finally:
        shutil.rmtree(rootfs)


def busybox() -> bytes:
    """Return the guest image's busybox, which is statically linked.

    Raises:
        NotFound: no guest image has been built.
    """
    return cpio.content(store.find().initrd.read_bytes(), "bin/busybox")


def busybox_rootfs(directory: Path) -> None:
    """Fill a directory with busybox and a link for each applet.

    Raises:
        NotFound: no guest image has been built.
    """
    for name in ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr/bin", "var"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "tmp").chmod(0o1777)
    (directory / "etc/passwd").write_text(_PASSWD)
    (directory / "etc/group").write_text(_GROUP)
    target = directory / "bin/busybox"
    target.write_bytes(busybox())
    target.chmod(0o755)
    for applet in _applets(target):
        os.link(target, directory / "bin" / applet)


def write_oci_archive(
    rootfs: Path, config: ImageConfig, out: Path, name: str, architecture: Architecture = HOST
) -> Path:
    """Write an image with one layer, made from a directory, as an OCI archive; the same input gives the same bytes.

    Args:
        rootfs: becomes the layer; all files are owned by root.
        config: of the image.
        out: path of the archive.
        name: the full name for containerd, such as docker.io/library/busybox:latest.
        architecture: of its programs.

    Returns:
        `out`.
    """
    layer = layer_of(rootfs)
    blobs: dict[str, bytes] = {}

    def blob(content: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    image = {
        "created": _EPOCH,
        "os": "linux",
        "architecture": architecture.name,
        "config": {
            "Entrypoint": list(config.entrypoint),
            "Cmd": list(config.cmd),
            "Env": list(config.env),
            "User": config.user,
            "WorkingDir": config.working_dir or "/",
            "StopSignal": config.stop_signal,
            "Labels": dict(config.labels or {}),
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": _EPOCH, "created_by": "tests.support.images"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(_json(image), "config.v1+json"),
        "layers": [blob(gzip.compress(layer, 1, mtime=0), "layer.v1.tar+gzip")],
    }
    descriptor = blob(_json(manifest), "manifest.v1+json") | {
        "platform": {"os": "linux", "architecture": architecture.name},
        "annotations": {
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name.rpartition(":")[2],
        },
    }
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": [descriptor]}),
        **dict(sorted(blobs.items())),
    }
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as archive:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out


def layer_of(rootfs: Path) -> bytes:
    """A layer with what is in a directory, as tar; all files are owned by root."""

    def cleaned(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mtime = 0
        return info

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for child in sorted(rootfs.iterdir()):
            archive.add(child, child.name, filter=cleaned)  # sorts what is beneath
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _applets(program: Path) -> list[str]:
    done = subprocess.run([program, "--list"], capture_output=True, text=True, timeout=30, check=True)
    return [applet for applet in done.stdout.split() if applet != program.name]
