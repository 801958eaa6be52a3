"""Which Debian packages make the guest, in which versions, and their files in a local cache.

apt does the work as if nothing were installed, with sources and package lists of the builder's own
(:mod:`kata.osbuilder.suite`): the result depends on what the suite offers, not on the host. The host's own lists and
packages are neither read nor changed.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kata.architecture import HOST, Architecture
from kata.command import run
from kata.errors import FailedPrecondition, Internal, NotFound, Unavailable
from kata.osbuilder import suite

#: Followed by the architecture.
KERNEL = "linux-image"
#: Depends on the package with the sources of that kernel, Debian's patches applied.
KERNEL_SOURCE = "linux-source"

# What the guest runs (iptables: for GetIPTables and SetIPTables); the rest follows from their dependencies.
USERLAND = (
    *("python3-minimal", "libpython3-stdlib", "python3-protobuf", "python3-yaml"),
    *("crun", "kmod", "busybox-static", "iptables"),
)

# What the host runs of the suite (`kata.osbuilder.host_programs`), with the libraries that it loads. Named one by one:
# virtiofsd's package depends on much that it needs only without root.
FOR_HOST = ("virtiofsd", "util-linux", "libc6", "libcap-ng0", "libgcc-s1", "libseccomp2")
# What every root is made with: ldconfig, and the C library for the other tools.
TOOLS = ("libc-bin", "libc6")
# What runs the programs of a guest of another architecture while its image is built: QEMU's emulator of processes,
# linked statically. It is unpacked, not installed, so that the host's kernel is told nothing (binfmt).
_EMULATOR = "qemu-user"
# Has the license of libgcc-s1; which one there is follows from the guest's dependencies.
_HOST_LICENSES = "gcc-[0-9]*-base"

# Named by dependencies, and not needed where no package is ever installed or configured; shell patterns, because
# libraries have their version in their name. The parts of Python's library that load one of these libraries are left
# out too, see rootfs.
_UNNEEDED = (
    *("debconf", "dpkg", "tar", "media-types", "tzdata", "python3", "python3.[0-9][0-9]", "readline-common"),
    *("libdb[0-9]*", "libncursesw[0-9]*", "libnsl[0-9]*", "libreadline[0-9]*", "libsqlite3-[0-9]*", "libtirpc*"),
    *("libcom-err[0-9]*", "libgssapi-krb5-[0-9]*", "libk5crypto[0-9]*", "libkeyutils[0-9]*", "libkrb5*"),
    *("libmd[0-9]*", "libtinfo[0-9]*", "libuuid[0-9]*", "libacl[0-9]*", "libselinux[0-9]*", "libpcre2-8-[0-9]*"),
    "openssl-provider-*",
)

# Named by dependencies of a recipe's packages, for maintainer scripts, which never run here.
_SCRIPTS_NEED = ("adduser", "debconf", "dpkg", "init-system-helpers", "passwd", "perl-base", "sensible-utils", "tar")

_LISTS_TIMEOUT_S = 180.0
_DOWNLOAD_TIMEOUT_S = 900.0

#: In what apt says of an archive without the suite.
_NO_SUITE = "does not have a Release file"
_INSTALLED = re.compile(r"^Inst (\S+) \((\S+) ", re.MULTILINE)
_URI = re.compile(r"^'[^']+' (\S+) (\d+) SHA256:([0-9a-f]{64})$", re.MULTILINE)
_KERNEL_PACKAGE = re.compile(r"^Depends: (?:.*, )?(linux-image-[0-9][^ ,]*)", re.MULTILINE)

_SOURCE_PACKAGE = re.compile(r"^Depends: (?:.*, )?(linux-source-[0-9][^ ,]*)", re.MULTILINE)


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
    """All packages of one image; iteration names each once.

    Attributes:
        kernel: with its modules; None if the image gets another one.
        userland: what the agent needs, unpacked into the root in part.
        host: what the host runs.
        extra: those of the recipe with all that they depend on, unpacked into the root as a whole. A library may be in
            more than one of the three.
        early: what the initrd runs, besides busybox.
        tools: what the host runs to make the image; they are not in it.
        emulator: what runs the guest's programs here if they are for another architecture; it is not in the image.
    """

    kernel: Package | None
    userland: tuple[Package, ...]
    host: tuple[Package, ...]
    extra: tuple[Package, ...] = ()
    early: tuple[Package, ...] = ()
    tools: tuple[Package, ...] = ()
    emulator: tuple[Package, ...] = ()

    def __iter__(self) -> Iterator[Package]:
        kernel = (self.kernel,) if self.kernel else ()
        return iter(dict.fromkeys((*kernel, *self.userland, *self.host, *self.extra, *self.early)))

    @property
    def needed(self) -> tuple[Package, ...]:
        """All of which the image is made, and what makes it."""
        return tuple(dict.fromkeys((*self, *self.tools, *self.emulator)))

    @property
    def release(self) -> str:
        """The release of its kernel, e.g. "6.12.118+deb13-amd64"."""
        assert self.kernel
        return self.kernel.name.removeprefix("linux-image-").removesuffix("-unsigned")


class PackageCache:
    """Resolves the names of a suite's packages and keeps the .deb files, below one directory.

    Attributes:
        directory: the directory.

    Args:
        directory: for apt's state and the packages.
        mirror: address of the Debian archive to use.
        name: of the suite; "" for the guest's.
        architecture: of the guest.
    """

    def __init__(
        self, directory: Path, mirror: str = suite.MIRROR, name: str = "", architecture: Architecture = HOST
    ) -> None:
        self.directory = directory
        self._debs = directory / "debs"
        self._mirror = mirror
        self._suite = name or suite.guest_suite()
        self._architecture = architecture
        # What runs on the host, if that is another one.
        self._for_host = self if architecture is HOST else PackageCache(directory, mirror, name)
        self._apt = directory / ("apt" if architecture is HOST else f"apt-{architecture.name}")
        # apt.conf refers to the other files.
        self._files = {
            "status": "",
            "guest.sources": suite.sources(self._suite, mirror, architecture.name),
            "apt.conf": suite.configuration(self._apt, architecture.name),
        }

    def path(self, package: Package) -> Path:
        """Where a package is, or will be, in the cache."""
        return self._debs / package.filename

    def resolve(
        self, extra: Sequence[str] = (), early: Sequence[str] = (), tools: Sequence[str] = (), *, kernel: bool = True
    ) -> PackageSet:
        """The guest's packages as the package lists name them now.

        Args:
            extra: names of a recipe's packages.
            early: names of packages for the initrd.
            tools: names of packages that write the image, each library's named as well.
            kernel: with Debian's kernel.

        Raises:
            FailedPrecondition: the lists are missing or do not have a package of the agent's.
            NotFound: they do not have one of `extra`.
        """
        try:
            userland = self.closure(USERLAND, leave_out=_UNNEEDED)
            host = self._for_host.named(*FOR_HOST)
            made_with = self._for_host.named(*TOOLS, *tools)
            emulator = [] if self._for_host is self else self._for_host.named(_EMULATOR)
            self._check_known(extra)
            more, first = (self.closure(names, leave_out=_SCRIPTS_NEED) if names else [] for names in (extra, early))
            debians = self._kernel() if kernel else None
        except Internal as error:
            raise FailedPrecondition(
                f"apt cannot find the guest's packages: {error}", hint="run: kata image build --update"
            ) from None
        licenses = [package for package in userland if fnmatch.fnmatchcase(package.name, _HOST_LICENSES)]
        return PackageSet(
            debians,
            userland=tuple(userland),
            host=(*host, *licenses),
            extra=tuple(more),
            early=tuple(first),
            tools=tuple(made_with),
            emulator=tuple(emulator),
        )

    def _kernel(self) -> Package:
        """Debian's kernel.

        Raises:
            Internal: the lists are missing or do not have it.
            FailedPrecondition: they have it without the package that it stands for.
        """
        kernel = f"{KERNEL}-{self._architecture.name}"
        described = self._run("apt-cache", "show", "--no-all-versions", kernel)
        if (name := _KERNEL_PACKAGE.search(described)) is None:
            raise FailedPrecondition(f"package {kernel} does not depend on a kernel image")
        (package,) = self.named(name[1])
        return package

    def _check_known(self, names: Sequence[str]) -> None:
        """See that the suite has packages.

        Raises:
            NotFound: it does not have one of them.
        """
        known = set(self._run("apt-cache", "pkgnames").split()) if names else set()
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise NotFound(
                    f"Debian has no package {name} in {self._suite}",
                    hint=f"did you mean {near[0]}?" if near else "run: kata image build --update",
                )

    def kernel_source(self) -> Package:
        """The package with the sources of the suite's kernel.

        Raises:
            FailedPrecondition: the lists are missing or do not have it.
        """
        try:
            described = self._run("apt-cache", "show", "--no-all-versions", KERNEL_SOURCE)
            if (name := _SOURCE_PACKAGE.search(described)) is None:
                raise FailedPrecondition(f"package {KERNEL_SOURCE} does not depend on sources of a kernel")
            (package,) = self.named(name[1])
        except Internal as error:
            raise FailedPrecondition(
                f"apt cannot find the kernel's sources: {error}", hint="run: kata kernel setup --update"
            ) from None
        return package

    def closure(self, names: Sequence[str], *, leave_out: Sequence[str] = ()) -> list[Package]:
        """These packages and all they depend on, sorted by name.

        Args:
            names: packages of the suite.
            leave_out: shell patterns of names that are not wanted.

        Raises:
            Internal: the lists are missing or do not have a package.
        """
        installed = _INSTALLED.findall(self._run("apt-get", "install", "--simulate", *names))
        wanted = [
            f"{name}={version}"
            for name, version in installed
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in leave_out)
        ]
        return self.named(*wanted)

    def named(self, *names: str) -> list[Package]:
        """Packages of the suite, sorted by name.

        Args:
            names: of packages, or NAME=VERSION.

        Raises:
            Internal: the lists are missing or do not have a package.
        """
        listed = self._run("apt-get", "download", "--print-uris", *names)
        return sorted(parse_uris(listed), key=lambda package: package.name)

    def _prepare(self) -> None:
        for directory in (self._apt / "lists" / "partial", self._apt / "archives" / "partial", self._debs):
            directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            # Not touched without need: apt's own cache is valid for as long as these files do not change.
            path = self._apt / name
            if not path.exists() or path.read_text() != content:
                path.write_text(content)

    def update(self) -> None:
        """Fetch the package lists anew.

        Raises:
            Unavailable: no network, or the mirror does not answer, cannot be trusted or has no such suite.
        """
        if self._for_host is not self:
            self._for_host.update()
        try:
            self._run("apt-get", "update", "--error-on=any", timeout=_DOWNLOAD_TIMEOUT_S)
        except Internal as error:
            if _NO_SUITE in error.message:
                raise Unavailable(
                    f"{self._mirror} has no suite {self._suite}", hint="name an archive of Debian with --mirror"
                ) from None
            raise Unavailable(
                f"cannot update the package lists: {error}", hint="check the network, or name a mirror with --mirror"
            ) from None

    def missing(self, packages: Iterable[Package]) -> list[Package]:
        """Those whose file is not in the cache, or not the one that the lists promise."""
        return [package for package in packages if not _matches(self.path(package), package)]

    def download(self, packages: Sequence[Package]) -> None:
        """Fetch the files of some packages; apt checks them against the signed lists.

        Raises:
            Unavailable: a download failed.
        """
        if self._for_host is not self:
            for_host = [package for package in packages if package.filename.endswith(f"_{HOST.name}.deb")]
            self._for_host.download(for_host)
            packages = [package for package in packages if package not in for_host]
        if not packages:
            return
        names = [f"{package.name}={package.version}" for package in packages]
        try:
            self._run("apt-get", "download", *names, timeout=_DOWNLOAD_TIMEOUT_S, cwd=self._debs)
        except Internal as error:
            raise Unavailable(
                f"cannot download packages: {error}", hint="check the network, then run: kata image build --update"
            ) from None
        for package in self.missing(packages):
            raise Unavailable(f"package {package.filename} has not the promised content", hint="build again")

    def forget_others(self, kept: Iterable[str]) -> None:
        """Delete the files of all packages but those with these file names."""
        kept = set(kept)
        for path in self._debs.iterdir():
            if path.name not in kept:
                path.unlink()

    def _run(self, tool: str, *arguments: str, timeout: float = _LISTS_TIMEOUT_S, cwd: Path | None = None) -> str:
        # The way to the network is the host's: proxies, and an apt configuration named in the environment.
        names = (name for name in os.environ if name.lower().endswith("_proxy") or name == "APT_CONFIG")
        # Temporary files as well: not every user may write to /tmp everywhere.
        environment = {"TMPDIR": str(self._apt), **{name: os.environ[name] for name in names}}
        self._prepare()
        command = [tool, "-q", "-c", str(self._apt / "apt.conf"), *arguments]
        return run(command, timeout=timeout, cwd=cwd, env=environment)


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
    """When a package was made, in seconds since 1970: the time stamp of the first member of its archive (deb(5)).

    Raises:
        Internal: it is not a Debian package.
    """
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
