"""The container image of the installer for Kubernetes: an OCI archive, made without any container engine.

One layer has Python and two programs of util-linux, from the Debian packages of the guest's release; the other the tree
of the archive for /opt/kata. Nothing in it is run while it is made, so it needs neither root nor a sandbox.

References: OCI image specification 1.1, image-layout.md, config.md, layer.md.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kata.osbuilder.packages import Package, PackageCache
from kata.version import VERSION
from tools.release import tree as trees
from tools.release.tree import File, Link, Tree

#: By which a user calls it; deploy/helm/kata has the same.
REPOSITORY = "pykata/kata-deploy"
PREFIX = "opt/kata"

#: Python with its library, and what it loads of others.
_PYTHON = ("python3-minimal", "libpython3-stdlib")
#: Named by their dependencies, and needed by nothing that runs here.
_UNNEEDED = (
    *("debconf", "dpkg", "tar", "media-types", "tzdata", "python3", "python3.[0-9][0-9]", "readline-common"),
    *("libdb[0-9]*", "libncursesw[0-9]*", "libnsl[0-9]*", "libreadline[0-9]*", "libsqlite3-[0-9]*", "libtirpc*"),
    *("libcom-err[0-9]*", "libgssapi-krb5-[0-9]*", "libk5crypto[0-9]*", "libkeyutils[0-9]*", "libkrb5*"),
    *("libtinfo[0-9]*", "libacl[0-9]*", "perl-base"),
)
#: unshare(1) and setpriv(1), by which the installer runs programs of the node, and setpriv's library.
_PROGRAMS = ("util-linux", "libcap-ng0")
#: Of packages, nothing else is taken, and of a standard library no tests.
_TAKEN = ("usr/bin/python3", "usr/bin/setpriv", "usr/bin/unshare", "usr/lib/", "usr/lib64/")
_LEFT = (
    *("/ensurepip/", "/idlelib/", "/lib2to3/", "/pydoc_data/", "/test/", "/tkinter/", "/turtledemo/", "/gconv/"),
    *("/lib/systemd/", "/lib/udev/", "/lib/valgrind/", "/lib/mime/", "/engines-3/", "/audit/", "/lib/ssl/"),
)
_COPYRIGHT = "usr/share/doc/"
_MERGED = ("bin", "lib", "lib64", "sbin")
_LAUNCHER = """\
#!/usr/bin/python3 -IS
import sys

sys.path.insert(0, "/{library}")
from kata.deploy.main import main

main()
"""
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_TIMEOUT_S = 120.0


def packages(cache: PackageCache) -> list[Package]:
    """The packages of the image's first layer, as the package lists name them now; downloaded.

    Raises:
        KataError: the lists are missing, or a download failed.
    """
    found = [*cache.closure(_PYTHON, leave_out=_UNNEEDED), *cache.named(*_PROGRAMS)]
    cache.download(cache.missing(found))
    return sorted(set(found), key=lambda package: package.name)


def root(debs: Sequence[Path]) -> Tree:
    """The root file system but for what the image is for.

    Args:
        debs: the packages' files.

    Raises:
        subprocess.CalledProcessError: one cannot be read.
        ValueError: two packages have different files of one name.
    """
    tree: Tree = {name: Link(f"usr/{name}") for name in _MERGED}
    for deb in debs:
        done = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, capture_output=True, timeout=_TIMEOUT_S)
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            for member in archive:
                name = _place(member.name.removeprefix("./"))
                if name is None or member.isdir():
                    continue
                if member.issym():
                    entry: File | Link = Link(member.linkname)
                else:
                    # Of a hard link, the content of what it is linked with.
                    content = archive.extractfile(member)
                    assert content, f"{name} is neither a file nor a link"
                    entry = File(content.read(), 0o755 if member.mode & 0o100 else 0o644)
                if tree.setdefault(name, entry) != entry:
                    raise ValueError(f"{deb.name} has another {name} than a package before it")
    tree["usr/bin/kata-deploy"] = File(_LAUNCHER.format(library=f"{PREFIX}/{trees.LIBRARY}").encode(), 0o755)
    tree["etc/passwd"] = File(b"root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n")
    tree["etc/group"] = File(b"root:x:0:\nnogroup:x:65534:\n")
    return tree


def _place(name: str) -> str | None:
    """Where a file of a package goes; None: nowhere."""
    top, _, rest = name.partition("/")
    if top in _MERGED and rest:
        name = f"usr/{name}"
    if name.startswith(_COPYRIGHT):
        return name if name.endswith("/copyright") else None
    if not name.startswith(_TAKEN) or any(part in f"/{name}" for part in _LEFT):
        return None
    return name


def config(layers: Sequence[bytes], date: int) -> dict[str, Any]:
    """What the image runs.

    Args:
        layers: tar files.
        date: in seconds since 1970.
    """
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": datetime.fromtimestamp(date, UTC).isoformat(),
        "config": {
            "Entrypoint": ["/usr/bin/kata-deploy"],
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "Labels": {
                "org.opencontainers.image.title": "kata-deploy",
                "org.opencontainers.image.version": VERSION,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]},
    }


def write(trees_of_layers: Sequence[Mapping[str, File | Link]], path: Path, date: int) -> None:
    """Write an image as an OCI archive, the same bytes each time.

    Args:
        trees_of_layers: what each layer adds, the lowest first.
        path: of the archive.
        date: of all files, in seconds since 1970.

    Raises:
        OSError: it cannot be written.
    """
    blobs: dict[str, bytes] = {}

    def add(kind: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

    plain = [trees.plain_archive(tree, date) for tree in trees_of_layers]
    layers = [add(_LAYER, gzip.compress(layer, 6, mtime=0)) for layer in plain]
    described = add(_CONFIG, _json(config(plain, date)))
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described, "layers": layers}
    names = {
        # By the first containerd names what it imports, by the second everybody else does.
        "io.containerd.image.name": f"docker.io/{REPOSITORY}:{VERSION}",
        "org.opencontainers.image.ref.name": VERSION,
    }
    platform = {"architecture": "amd64", "os": "linux"}
    index = {
        "schemaVersion": 2,
        "mediaType": _INDEX,
        "manifests": [{**add(_MANIFEST, _json(manifest)), "platform": platform, "annotations": names}],
    }
    archive: Tree = {name: File(content) for name, content in blobs.items()}
    archive["oci-layout"] = File(_json({"imageLayoutVersion": "1.0.0"}))
    archive["index.json"] = File(_json(index))
    path.write_bytes(trees.plain_archive(archive, date))


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
