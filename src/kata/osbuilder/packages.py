"""Which Debian packages make the guest, in which versions, and their files in a local cache.

apt does the work with the host's sources and keyrings, as if nothing were installed: the result depends on what the
sources offer, not on what the host has. What the host has installed is neither read nor changed; only when its package
lists are missing or no longer match the archive are they updated, as `apt-get update` does.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kata.errors import FailedPrecondition, Internal, Unavailable
from kata.osbuilder.commands import run

KERNEL = "linux-image-amd64"

# What the guest runs (iptables: for GetIPTables and SetIPTables); the rest follows from their dependencies.
USERLAND = (
    "python3-minimal",
    "libpython3.11-stdlib",
    "python3-protobuf",
    "python3-yaml",
    "crun",
    "kmod",
    "busybox-static",
    "iptables",
)

# Named by dependencies, and not needed where no package is ever installed or configured. The parts of Python's library
# that load one of these libraries are left out too, see rootfs.
_UNNEEDED = frozenset(
    (
        *("debconf", "dpkg", "tar", "media-types", "python3", "python3.11", "readline-common"),
        *("libdb5.3", "libncursesw6", "libnsl2", "libreadline8", "libsqlite3-0", "libtirpc-common", "libtirpc3"),
        *("libcom-err2", "libgssapi-krb5-2", "libk5crypto3", "libkeyutils1", "libkrb5-3", "libkrb5support0"),
        *("libmd0", "libtinfo6", "libuuid1", "libacl1", "libselinux1", "libpcre2-8-0"),
    )
)

_LISTS_TIMEOUT = 180.0
_DOWNLOAD_TIMEOUT = 900.0

_INSTALLED = re.compile(r"^Inst (\S+) \((\S+) ", re.MULTILINE)
_URI = re.compile(r"^'[^']+' (\S+) (\d+) SHA256:([0-9a-f]{64})$", re.MULTILINE)
_KERNEL_PACKAGE = re.compile(r"^Depends: (?:.*, )?(linux-image-[0-9][^ ,]*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Package:
    """One package in one version.

    Attributes:
        name: e.g. "crun".
        version: as Debian writes it, e.g. "1:2.66-4".
        filename: of the .deb in the cache.
        size: of the .deb, in bytes.
        sha256: of the .deb, from the signed package lists.
    """

    name: str
    version: str
    filename: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PackageSet:
    """All packages of one image: the kernel, and what is unpacked into the root."""

    kernel: Package
    userland: tuple[Package, ...]

    def __iter__(self) -> Iterator[Package]:
        return iter((self.kernel, *self.userland))

    @property
    def release(self) -> str:
        """The kernel release, e.g. "6.1.0-56-amd64"."""
        return self.kernel.name.removeprefix("linux-image-").removesuffix("-unsigned")


class PackageCache:
    """Resolves package names with the host's package lists and keeps the .deb files in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._debs = directory / "debs"
        self._apt = directory / "apt"
        self._options = [
            *("-q", "-o", "APT::Install-Recommends=false", "-o", "APT::Sandbox::User=root"),
            *("-o", f"Dir::State::status={self._apt}/status", "-o", f"Dir::Cache={self._apt}"),
            *("-o", "Dir::Cache::pkgcache=pkgcache.bin", "-o", "Dir::Cache::srcpkgcache=srcpkgcache.bin"),
            *("-o", "Debug::NoLocking=true"),
        ]

    def path(self, package: Package) -> Path:
        return self._debs / package.filename

    def resolve(self) -> PackageSet:
        """The packages as the package lists name them now.

        Raises:
            FailedPrecondition: the lists are missing or do not have a package.
        """
        self._prepare()
        try:
            kernel = _KERNEL_PACKAGE.search(self._run("apt-cache", "show", "--no-all-versions", KERNEL))
            simulated = self._run("apt-get", "install", "--simulate", *USERLAND)
        except Internal as error:
            raise FailedPrecondition(
                f"apt cannot find the guest's packages: {error}",
                hint="run: kata image build --update, on Debian 12 with its usual package sources",
            ) from None
        if kernel is None:
            raise FailedPrecondition(f"package {KERNEL} does not depend on a kernel image")
        wanted = [f"{name}={version}" for name, version in _INSTALLED.findall(simulated) if name not in _UNNEEDED]
        packages = self.named(kernel[1], *wanted)
        (kernel_package,) = (package for package in packages if package.name == kernel[1])
        return PackageSet(kernel_package, tuple(package for package in packages if package is not kernel_package))

    def named(self, *names: str) -> list[Package]:
        """These packages, without what they depend on, sorted by name.

        Args:
            names: each may name a version, as in "crun=1.8.1-1".

        Raises:
            Internal: the lists do not have one.
        """
        self._prepare()
        listed = self._run("apt-get", "download", "--print-uris", *names)
        return sorted(parse_uris(listed), key=lambda package: package.name)

    def _prepare(self) -> None:
        for directory in (self._apt / "archives" / "partial", self._debs):
            directory.mkdir(parents=True, exist_ok=True)
        status = self._apt / "status"
        if not status.exists() or status.stat().st_size:
            # Not touched without need: apt's own cache is valid for as long as this file does not change.
            status.write_bytes(b"")

    def update(self) -> None:
        """Fetch the package lists anew.

        Raises:
            Unavailable: no network, or a source does not answer.
        """
        try:
            # The lists are the host's: here, unlike for questions, apt's lock counts.
            self._run("apt-get", "-o", "Debug::NoLocking=false", "update", timeout=_DOWNLOAD_TIMEOUT)
        except Internal as error:
            raise Unavailable(f"cannot update the package lists: {error}", hint="check the network") from None

    def missing(self, packages: Iterable[Package]) -> list[Package]:
        """Those whose file is not in the cache, or not the one that the lists promise."""
        return [package for package in packages if not _matches(self.path(package), package)]

    def download(self, packages: Sequence[Package]) -> None:
        """Fetch the files of some packages; apt checks them against the signed lists.

        Raises:
            Unavailable: a download failed.
        """
        names = [f"{package.name}={package.version}" for package in packages]
        try:
            self._run("apt-get", "download", *names, timeout=_DOWNLOAD_TIMEOUT, cwd=self._debs)
        except Internal as error:
            raise Unavailable(
                f"cannot download packages: {error}", hint="check the network, then run: kata image build --update"
            ) from None
        for package in self.missing(packages):
            raise Unavailable(f"package {package.filename} has not the promised content", hint="build again")

    def forget_others(self, packages: Iterable[Package]) -> None:
        """Delete the files of packages that are not among these."""
        kept = {package.filename for package in packages}
        for path in self._debs.iterdir():
            if path.name not in kept:
                path.unlink()

    def _run(self, tool: str, *arguments: str, timeout: float = _LISTS_TIMEOUT, cwd: Path | None = None) -> str:
        # The way to the network is the host's: proxies, and an apt configuration named in the environment.
        names = (name for name in os.environ if name.lower().endswith("_proxy") or name == "APT_CONFIG")
        return run([tool, *self._options, *arguments], timeout=timeout, cwd=cwd, env={n: os.environ[n] for n in names})


def parse_uris(listed: str) -> list[Package]:
    """The packages in the output of `apt-get download --print-uris`.

    Raises:
        Internal: no line is understood.
    """
    packages = []
    for filename, size, sha256 in _URI.findall(listed):
        name, version, _ = filename.split("_", 2)
        packages.append(Package(name, version.replace("%3a", ":"), filename, int(size), sha256))
    if not packages:
        raise Internal("apt-get printed no package addresses")
    return packages


def build_date(deb: Path) -> int:
    """When a package was made, in seconds since 1970: the time stamp of the first member of its archive (deb(5))."""
    with deb.open("rb") as file:
        header = file.read(36)
    if header[:8] != b"!<arch>\n" or not header[24:36].strip().isdigit():
        raise Internal(f"{deb} is not a Debian package")
    return int(header[24:36])


def _matches(path: Path, package: Package) -> bool:
    try:
        if path.stat().st_size != package.size:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
    except FileNotFoundError:
        return False
