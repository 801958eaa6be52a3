"""What a kernel is built from, what it is called, and the commands that build it. Pure.

Reference: the kernel's Documentation/kbuild/kbuild.rst and reproducible-builds.rst.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kata.errors import InvalidArgument
from kata.kernel_build.fragments import Patch

_UPSTREAM = re.compile(r"(\d+\.\d+(?:\.\d+)?)")
#: Programs that a build runs, and the Debian package of each.
TOOLS = {
    "ar": "binutils",
    "bc": "bc",
    "bison": "bison",
    "dpkg-deb": "dpkg",
    "flex": "flex",
    "gcc": "gcc",
    "make": "make",
    "patch": "patch",
    "perl": "perl",
    "setpriv": "util-linux",
    "strip": "binutils",
    "tar": "tar",
    "unshare": "util-linux",
    "xz": "xz-utils",
}
#: A header that a build includes, and the Debian package of each: objtool reads object files.
HEADERS = {"/usr/include/gelf.h": "libelf-dev", "/usr/include/stdlib.h": "libc6-dev"}


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that decides what a kernel is.

    Attributes:
        source: SHA-256 of the package with the sources.
        package: its version, e.g. "6.12.118-1".
        date: when it was made, in seconds since 1970.
        patches: in their order.
        options: of the fragments.
        config_version: of the project's fragments.
        compiler: what it says of itself; another one makes other bytes.
    """

    source: str
    package: str
    date: int
    patches: tuple[Patch, ...]
    options: Mapping[str, str]
    config_version: int
    compiler: str

    @property
    def tree_key(self) -> str:
        """Key of the patched sources."""
        return _digest([self.source, [[one.name, hashlib.sha256(one.content).hexdigest()] for one in self.patches]])

    @property
    def key(self) -> str:
        """Key of the kernel."""
        return _digest([self.tree_key, list(self.options.items()), self.config_version, self.compiler])

    @property
    def upstream(self) -> str:
        """The version of Linux, e.g. "6.12.118".

        Raises:
            InvalidArgument: the package's version has none.
        """
        if not (found := _UPSTREAM.match(self.package)):
            raise InvalidArgument(f"version {self.package[:64]} of the kernel's sources is not understood")
        return found[1]

    @property
    def release(self) -> str:
        """As `uname -r` says it in the guest, e.g. "6.12.118-kata1"."""
        return f"{self.upstream}-kata{self.config_version}"

    @property
    def version(self) -> str:
        """What the kernel is called on the host, e.g. "6.12.118-kata1-3fd90a7be812"."""
        return f"{self.release}-{self.key[:12]}"

    @property
    def wanted(self) -> dict[str, str]:
        """The options, with the one that names the release."""
        return {**self.options, "LOCALVERSION": f'"-kata{self.config_version}"', "LOCALVERSION_AUTO": "n"}


def make(tree: Path, objects: Path, *targets: str, jobs: int = 1, ccache: bool = False) -> list[str]:
    """The command that makes targets of the kernel, outside of its tree.

    Args:
        tree: the sources.
        objects: the directory of what is made.
        targets: of the kernel's Makefile.
        jobs: how many at a time.
        ccache: compile through ccache(1).
    """
    command = ["make", "-C", str(tree), f"O={objects}", f"-j{jobs}", "ARCH=x86_64", "LOCALVERSION="]
    return [*command, *(["CC=ccache gcc"] if ccache else []), *targets]


def environment(date: int, allconfig: Path, ccache: Path) -> dict[str, str]:
    """Variables of such a command: the same bytes whoever builds, and where.

    Args:
        date: that the kernel tells as the time of its build.
        allconfig: options for the target `allnoconfig`.
        ccache: its directory.
    """
    stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(date))
    who = {"KBUILD_BUILD_USER": "kata", "KBUILD_BUILD_HOST": "kata", "KBUILD_BUILD_VERSION": "1"}
    return {
        **who,
        "KBUILD_BUILD_TIMESTAMP": stamp,
        "KCONFIG_ALLCONFIG": str(allconfig),
        "CCACHE_DIR": str(ccache),
        # What was preprocessed for the look-up is compiled, which makes gcc warn of more; it goes to the log.
        "CCACHE_NOCPP2": "1",
        "HOME": "/nonexistent",
    }


def missing_packages(programs: Sequence[str], headers: Sequence[str]) -> list[str]:
    """The Debian packages to install for programs and headers that are not there, sorted."""
    return sorted({TOOLS[name] for name in programs} | {HEADERS[path] for path in headers})


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
