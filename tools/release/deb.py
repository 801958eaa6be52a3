"""Debian packages: the runtime, and a guest image. dpkg-deb makes them from a tree; nothing is compiled here, so
debhelper, which prepares that, would have nothing to do.

Python's packages are carried along in /usr/lib/pykata: Debian 12 has neither QEMU's QMP client nor typer 0.12, and one
package serves both releases, since compiled modules say in their names for which Python they are.

References: deb-control(5), deb(7), Debian Policy 3-6, 8.2, 12; dh_python3(1), whose scripts for modules in a directory
of their own these are.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from kata.version import VERSION
from tools.release import tree as trees
from tools.release.tree import File, Link, Tree

PACKAGING = Path(__file__).resolve().parents[2] / "packaging/debian"
RUNTIME, GUEST = "pykata", "pykata-guest"
MAINTAINER = "pykata developers <developers@pykata.example.org>"
_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Package:
    """One package.

    Attributes:
        name: of it.
        fields: of its control file, but for what follows from the rest.
        tree: its files, beneath usr.
        scripts: maintainer scripts by name.
    """

    name: str
    fields: Mapping[str, str]
    tree: Tree
    scripts: Mapping[str, str]

    @property
    def file_name(self) -> str:
        """Of the package."""
        return f"{self.name}_{VERSION}_amd64.deb"


def runtime(installed: Tree, date: int) -> Package:
    """The package of the runtime.

    Args:
        installed: commands, library, man pages and completion, as in the archive.
        date: of the release.
    """
    fields = {
        "Depends": "python3 (>= 3.11), python3 (<< 3.14), qemu-system-x86, erofs-utils, "
        "libc6 (>= 2.34), libgcc-s1, libstdc++6",
        "Recommends": f"{GUEST} (= {VERSION}), containerd",
        "Suggests": "docker.io, debian-archive-keyring, containernetworking-plugins, iptables",
        "Description": "Kata Containers in Python: containers in a virtual machine of their own\n"
        " Each pod or container runs with a Linux kernel of its own, in a virtual machine\n"
        " of QEMU. containerd and Docker start it as the runtime io.containerd.kata.v2,\n"
        " Kubernetes by a RuntimeClass, and a person by `kata run`.",
    }
    tree = {f"usr/{_debians_place(path)}": entry for path, entry in installed.items()}
    return Package(RUNTIME, fields, tree | _documents(RUNTIME, date), _scripts(RUNTIME))


def guest(image: Tree, version: str, licenses: bytes, date: int) -> Package:
    """The package of a guest image.

    Args:
        image: its files, as in the archive.
        version: of the image.
        licenses: of all that is in it.
        date: of the release.
    """
    fields = {
        "Depends": f"{RUNTIME} (= {VERSION})",
        "Description": "Guest image for Kata Containers in Python\n"
        " Kernel, initrd and root file system that the virtual machines of pykata boot,\n"
        f" made from packages of Debian: image {version}.\n"
        " One that is built on the host (kata image build) is used instead of it.",
    }
    documents = _documents(GUEST, date)
    documents[f"usr/share/doc/{GUEST}/copyright"] = File((PACKAGING / f"{GUEST}.copyright").read_bytes() + licenses)
    return Package(GUEST, fields, trees.under("usr", image) | documents, _scripts(GUEST))


def _debians_place(path: str) -> str:
    """Where Debian has what is at this place below `share` elsewhere."""
    return path.replace("share/zsh/site-functions/", "share/zsh/vendor-completions/")


def _documents(name: str, date: int) -> Tree:
    """Copyright, changelog, and what lintian need not tell."""
    when = format_datetime(datetime.fromtimestamp(date, UTC))
    changelog = (
        f"{name} ({VERSION}) unstable; urgency=medium\n\n"
        f"  * Release {VERSION}. What it changes is in /usr/share/doc/{RUNTIME}/CHANGELOG.md.gz.\n\n"
        f" -- {MAINTAINER}  {when}\n"
    )
    tree: Tree = {f"usr/share/doc/{name}/changelog.gz": File(_zipped(changelog.encode()))}
    copyright_file = PACKAGING / f"{name}.copyright"
    tree[f"usr/share/doc/{name}/copyright"] = File(copyright_file.read_bytes())
    overrides = PACKAGING / f"{name}.lintian-overrides"
    tree[f"usr/share/lintian/overrides/{name}"] = File(overrides.read_bytes())
    return tree


def _scripts(name: str) -> dict[str, str]:
    found = {}
    for kind in ("preinst", "postinst", "prerm", "postrm"):
        path = PACKAGING / f"{name}.{kind}"
        if path.exists():
            found[kind] = path.read_text(encoding="utf-8")
    return found


def zipped_pages(tree: Mapping[str, File | Link]) -> Tree:
    """The tree with man pages and long documents as Debian has them."""
    found: Tree = {}
    for path, entry in tree.items():
        if isinstance(entry, File) and (path.startswith("share/man/") or path.endswith("/CHANGELOG.md")):
            found[f"{path}.gz"] = File(_zipped(entry.read()))
        else:
            found[path] = entry
    return found


def _zipped(content: bytes) -> bytes:
    return gzip.compress(content, 9, mtime=0)


def control(package: Package) -> str:
    """The control file."""
    size = sum(-(-len(entry.read()) // 1024) for entry in package.tree.values() if isinstance(entry, File))
    fields = {
        "Package": package.name,
        "Version": VERSION,
        "Architecture": "amd64",
        "Maintainer": MAINTAINER,
        "Installed-Size": str(size),
        **{name: value for name, value in package.fields.items() if name != "Description"},
        "Section": "admin",
        "Priority": "optional",
        "Description": package.fields["Description"],
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def build(package: Package, out: Path, date: int) -> Path:
    """Make the package with dpkg-deb; returns its path, below `out`.

    Raises:
        subprocess.CalledProcessError: dpkg-deb has failed.
        OSError: a file cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=out, prefix=".deb-") as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        root.chmod(0o755)
        meta: Tree = {
            "DEBIAN/control": File(control(package).encode()),
            "DEBIAN/md5sums": File(trees.digests(package.tree, "md5").encode()),
            **{f"DEBIAN/{name}": File(text.encode(), 0o755) for name, text in package.scripts.items()},
        }
        trees.write({**package.tree, **meta}, root)
        target = out / package.file_name
        # dpkg-deb cuts newer dates to this one, and compresses with one thread to have the same bytes everywhere.
        options = ["--root-owner-group", "-Zxz", f"-z{trees.LEVEL}", "--threads-max=1"]
        command = ["dpkg-deb", *options, "--build", str(root), str(target)]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(date)}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, timeout=_TIMEOUT_S)
    return target
