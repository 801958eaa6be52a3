"""`make dist`: all files of a release, in dist/.

    pykata-VERSION.tar.gz, pykata-VERSION-py3-none-any.whl    for pip
    pykata_VERSION_amd64.deb, pykata-guest_VERSION_amd64.deb  for apt
    pykata-VERSION-amd64.tar.xz                               /opt/kata, with the guest image
    kata-deploy-VERSION-amd64.oci.tar                         its container image, which installs it on nodes
    pykata-VERSION.cdx.json                                   what is in them of others
    SHA256SUMS

The same sources and the same guest image give the same bytes, in whatever directory and whenever they are built: dates
are the commit's (SOURCE_DATE_EPOCH), orders and owners are fixed, and what comes from a package index is locked.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kata.errors import KataError
from kata.osbuilder import store, suite
from kata.osbuilder.build import DEFAULT_CACHE
from kata.osbuilder.packages import PackageCache
from kata.version import VERSION
from tools import manual
from tools.release import deb, lock, sbom
from tools.release import image as container
from tools.release import tree as trees
from tools.release.lock import PROJECT, PYTHONS
from tools.release.tree import File, Tree
from tools.test_hosts import copy_project

SUMS = "SHA256SUMS"
ARCHIVE = f"pykata-{VERSION}-amd64.tar.xz"
CONTAINER = f"kata-deploy-{VERSION}-amd64.oci.tar"
BILL = f"pykata-{VERSION}.cdx.json"
#: Where the archive's files go.
PREFIX = "opt/kata"
#: Kata's own archive has more; this is what a host has to load.
MAX_ARCHIVE = 120_000_000
_EXAMPLES = ("deploy/runtimeclass.yaml", "deploy/kata-monitor.service", "deploy/grafana/kata.json")
_TIMEOUT_S = 600.0


def date_of_commit() -> int:
    """$SOURCE_DATE_EPOCH, or when the last commit was made, in seconds since 1970."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=PROJECT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def build_python(out: Path, scratch: Path, date: int) -> tuple[Path, Path]:
    """Make the source archive, and the wheel from it; returns their paths, in this order."""
    sources = scratch / "sources"
    copy_project(sources)
    for path in (sources, *sources.rglob("*")):
        # What a person's umask has made of them is not a part of the project.
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    # Without digests: with them pip would want the requirement itself, which is the project's, to name a version.
    pinned = lock.parse(lock.BUILD.read_text(encoding="utf-8"))
    constraints = scratch / "constraints.txt"
    constraints.write_text("".join(f"{one.name}=={one.version}\n" for one in pinned))
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(date), "PIP_CONSTRAINT": str(constraints)}
    command = [sys.executable, "-m", "build", "--outdir", str(scratch / "built"), str(sources)]
    # A wheel has the permissions of the files that it is made of.
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, timeout=_TIMEOUT_S, umask=0o022)
    source, wheel = (scratch / "built" / name for name in (f"pykata-{VERSION}.tar.gz", _wheel_name()))
    (out / source.name).write_bytes(same_each_time(source.read_bytes(), date))
    (out / wheel.name).write_bytes(wheel.read_bytes())
    return out / source.name, out / wheel.name


def _wheel_name() -> str:
    return f"pykata-{VERSION}-py3-none-any.whl"


def same_each_time(archive: bytes, date: int) -> bytes:
    """A .tar.gz with the dates, owners and order of all others: setuptools takes those of the files."""
    plain = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as old,
        tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = date, 0, 0, "root", "root"
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
    return gzip.compress(plain.getvalue(), 9, mtime=0)


def fetch_wheels(directory: Path) -> list[Path]:
    """Download what is locked; pip compares the digests."""
    for python in PYTHONS:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        options = ["--require-hashes", "--requirement", str(lock.REQUIREMENTS), "--dest", str(directory)]
        subprocess.run([*command, *options, *lock.selection(python)], check=True, timeout=_TIMEOUT_S)
    return sorted(directory.glob("*.whl"))


def installed(wheels: Iterable[Path]) -> Tree:
    """What is installed beneath a prefix, but for the guest image."""
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    library = trees.wheels(wheels)
    tree = trees.commands(scripts) | library | trees.listed(library)
    for place, text in manual.files().items():
        tree[f"share/{place}"] = File(text.encode())
    for name in ("README.md", "CHANGELOG.md"):
        tree[f"share/doc/pykata/{name}"] = File(PROJECT / name)
    for name in _EXAMPLES:
        tree[f"share/doc/pykata/examples/{Path(name).name}"] = File(PROJECT / name)
    return tree


def sums(directory: Path) -> str:
    """The digests of all files of a release, as sha256sum(1) reads them."""
    paths = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith(SUMS))
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)


def build(out: Path, image: str, say: Callable[[str], object]) -> None:
    """Make all files of a release.

    Args:
        out: the directory; what an earlier release left in it is removed.
        image: version of the guest image.
        say: told each file.

    Raises:
        KataError: there is no such image, or it is damaged.
        subprocess.CalledProcessError: a tool has failed.
        ValueError: something is not as it has to be.
    """
    date = date_of_commit()
    guest = store.find(None, image)
    store.check(guest)
    if not guest.version.startswith(f"{VERSION}-"):
        raise ValueError(f"guest image {guest.version} is not of version {VERSION}; run: make image")
    out.mkdir(parents=True, exist_ok=True)
    for path in out.iterdir():
        if path.is_file():
            path.unlink()

    begin = time.monotonic()

    def told(path: Path) -> None:
        say(f"{path.stat().st_size / 1e6:8.1f} MB  {time.monotonic() - begin:4.0f} s  {path.name}\n")

    with tempfile.TemporaryDirectory(prefix="kata-release-") as name:
        scratch = Path(name)
        source, wheel = build_python(out, scratch, date)
        told(source)
        told(wheel)
        tree = installed([wheel, *fetch_wheels(scratch / "wheels")])
        images = trees.image(guest)
        told(deb.build(deb.runtime(deb.zipped_pages(tree), date), out, date))
        licenses = (guest.directory / "copyright").read_bytes()
        told(deb.build(deb.guest(images, guest.version, licenses, date), out, date))
        tree["share/doc/pykata/LICENSE"] = File(PROJECT / "LICENSE")
        trees.write_archive(trees.under(PREFIX, tree | images), out / ARCHIVE, date)
        told(out / ARCHIVE)
        if (size := (out / ARCHIVE).stat().st_size) > MAX_ARCHIVE:
            raise ValueError(f"{ARCHIVE} has {size} bytes; the maximum is {MAX_ARCHIVE}")
        cache = PackageCache(DEFAULT_CACHE)
        packages = container.packages(cache)
        root = container.root([cache.path(package) for package in packages])
        container.write([root, trees.under(PREFIX, tree | images)], out / CONTAINER, date)
        told(out / CONTAINER)
    pinned = lock.parse(lock.REQUIREMENTS.read_text(encoding="utf-8"))
    (out / BILL).write_text(sbom.make(pinned, sbom.with_packages(guest.manifest, packages), suite.guest_suite(), date))
    told(out / BILL)
    (out / SUMS).write_text(sums(out))
    for path in out.iterdir():
        path.chmod(0o644)


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description="Make all files of a release.")
    parser.add_argument("--out", type=Path, default=PROJECT / "dist", help="directory (dist)")
    parser.add_argument("--image", default=store.CURRENT, help="version of the guest image (the current one)")
    chosen = parser.parse_args(arguments)
    try:
        build(chosen.out, chosen.image, sys.stderr.write)
    except (KataError, ValueError, OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"make dist: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
