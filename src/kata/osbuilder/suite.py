"""Of which Debian suite the guest is made: the suite's package sources, and a configuration of apt for them.

Pure: text in, text out. The guest does not depend on the host's release: suite and keys are named here, and what the
host's configuration of apt says about which packages to take is cleared. How to reach a mirror (proxies, certificates,
logins) stays the host's.

References: sources.list(5), section "DEB822-STYLE FORMAT"; apt.conf(5), for `#clear`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from kata.architecture import HOST
from kata.errors import InvalidArgument

MIRROR = "http://deb.debian.org/debian"

#: Of the package debian-archive-keyring, on which apt depends: each release has its own keys and those of the next.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_HOST, _GUEST = "host", "guest"

# What the host's configuration could change: hooks of `apt-get update`, and which versions are chosen.
_CONFIGURATION = """\
#clear APT::Update;
APT::Default-Release "";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "root";
Debug::NoLocking "true";
APT::Architecture "{architecture}";
#clear APT::Architectures;
APT::Architectures "{architecture}";
"""


_STANZA = """\
Types: deb
URIs: {address}
Suites: {suites}
Components: main
Architectures: {architecture}
Targets: Packages
Signed-By: {keyring}
"""


@dataclass(frozen=True, slots=True)
class Release:
    """A Debian release.

    Attributes:
        number: e.g. "13", VERSION_ID in os-release(5).
        suite: e.g. "trixie".
        host: whether the project is tested with it as a host.
        guest: whether guests are made of it; of one release they are.
        packages: what hosts of this release need that others do not.
    """

    number: str
    suite: str
    host: bool
    guest: bool
    packages: tuple[str, ...]


def parse(table: str) -> tuple[Release, ...]:
    """The releases of a table such as releases.txt: four columns, "#" for comments."""
    releases = []
    for line in table.splitlines():
        if line.strip() and not line.startswith("#"):
            number, suite, use, packages = line.split()
            uses = use.split(",")
            extra = () if packages == "-" else tuple(packages.split(","))
            releases.append(Release(number, suite, _HOST in uses, _GUEST in uses, extra))
    return tuple(releases)


def releases() -> tuple[Release, ...]:
    """The releases that this project knows."""
    return parse(files(__package__).joinpath("releases.txt").read_text())


def guest_suite() -> str:
    """The suite of which guests are made, e.g. "trixie"."""
    (suite,) = (release.suite for release in releases() if release.guest)
    return suite


def check_guest(name: str) -> None:
    """See that guests are made of a release, named by its suite or its number.

    Raises:
        InvalidArgument: they are not, or there is no such release.
    """
    (guest,) = (release for release in releases() if release.guest)
    if name not in (guest.suite, guest.number):
        raise InvalidArgument(f"guests are made of {guest.suite} (Debian {guest.number}), not of {name[:32]}")


def sources(suite: str, mirror: str = MIRROR, architecture: str = HOST.name) -> str:
    """A suite with its updates and security updates, in the format of a `.sources` file.

    Args:
        suite: e.g. "trixie".
        mirror: address of the archive; the security archive is beside it, with "-security" at its end.
        architecture: of the packages.
    """
    mirror = mirror.rstrip("/")
    archives = {mirror: (suite, f"{suite}-updates"), f"{mirror}-security": (f"{suite}-security",)}
    return "\n".join(
        _STANZA.format(address=address, suites=" ".join(names), architecture=architecture, keyring=KEYRING)
        for address, names in archives.items()
    )


def configuration(directory: Path, architecture: str = HOST.name) -> str:
    """A configuration of apt, read after the host's, that keeps all state below `directory`.

    Args:
        directory: has a file `guest.sources`.
        architecture: of the packages.
    """
    directories = {
        "Dir::State": directory,
        "Dir::State::status": directory / "status",
        "Dir::Cache": directory,
        "Dir::Cache::pkgcache": "pkgcache.bin",
        "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
        "Dir::Etc::sourcelist": directory / "guest.sources",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
    }
    return _CONFIGURATION.format(architecture=architecture) + "".join(
        f'{name} "{value}";\n' for name, value in directories.items()
    )
