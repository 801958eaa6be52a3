"""`make lock`: which versions of other projects the packages and the archive carry, with digests of their files.

A package index has new files every day. Names and digests make a release the same whenever it is built, and pip refuses
what has another content. Wheels are taken for the Python of each Debian release that may be a host.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
REQUIREMENTS = PROJECT / "packaging/requirements.lock"
BUILD = PROJECT / "packaging/build.lock"
#: Those of Debian 12 and 13.
PYTHONS = ("3.11", "3.13")
#: The C library of Debian 12 is 2.36; pip wants every older one named, too.
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 26, 24, 17)), "manylinux2014_x86_64")

_TIMEOUT_S = 300.0
_LINE = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)$")


@dataclass(frozen=True)
class Pinned:
    """One project at one version.

    Attributes:
        name: normalized (PEP 503).
        version: of it.
        sha256: digests of the files that may be taken.
    """

    name: str
    version: str
    sha256: tuple[str, ...]


def parse(text: str) -> list[Pinned]:
    """A lock file. Raises ValueError for a line that is none of it."""
    found = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            if (match := _LINE.match(line)) is None:
                raise ValueError(f"not a line of a lock file: {line[:80]}")
            found.append(Pinned(match[1], match[2], tuple(re.findall(r"[0-9a-f]{64}", match[3]))))
    return found


def dump(pinned: Iterable[Pinned], of: str) -> str:
    """As a file, which pip reads as requirements."""
    lines = [f"# {of} Written by `make lock`."]
    for one in sorted(pinned, key=lambda each: each.name):
        hashes = "".join(f" --hash=sha256:{digest}" for digest in sorted(one.sha256))
        lines.append(f"{one.name}=={one.version}{hashes}")
    return "\n".join(lines) + "\n"


def merge(reports: Iterable[Mapping[str, Any]]) -> list[Pinned]:
    """What pip would install for each Python, as one.

    Args:
        reports: of `pip install --report`.

    Raises:
        ValueError: two Pythons get different versions of a project: their files could not lie in one directory.
    """
    versions: dict[str, str] = {}
    digests: dict[str, set[str]] = {}
    for report in reports:
        for item in report["install"]:
            name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
            version = item["metadata"]["version"]
            if versions.setdefault(name, version) != version:
                raise ValueError(f"{name} is {versions[name]} for one Python and {version} for another")
            digests.setdefault(name, set()).add(item["download_info"]["archive_info"]["hashes"]["sha256"])
    return [Pinned(name, versions[name], tuple(sorted(digests[name]))) for name in sorted(versions)]


def dependencies() -> list[str]:
    """What pyproject.toml names."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: list[str] = project["dependencies"]
    return found


def selection(python: str) -> list[str]:
    """Options with which pip takes wheels for another Python than its own."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    return ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]


def resolve(requirements: Iterable[str], python: str) -> dict[str, Any]:
    """pip's report of what it would install."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
    options = ["--ignore-installed", "--report", "-", "--target", "/nonexistent", *selection(python)]
    done = subprocess.run(
        [*command, *options, *requirements], stdout=subprocess.PIPE, check=True, timeout=_TIMEOUT_S, text=True
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def main() -> int:
    """Write the lock files; returns the exit status."""
    wheels = merge(resolve(dependencies(), python) for python in PYTHONS)
    REQUIREMENTS.write_text(dump(wheels, "What packages and archive carry, for each Python of a host."))
    build = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    BUILD.write_text(dump(merge([resolve(build, PYTHONS[0])]), "What the wheel is built with."))
    return 0


if __name__ == "__main__":
    sys.exit(main())
