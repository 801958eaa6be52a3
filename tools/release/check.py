"""`make release-check`: whether what is in dist/ can be released, one row each. See docs/releasing.md."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement

from kata.version import VERSION
from tools.release import __main__ as release
from tools.release import deb, lock

_LINTIAN_TIMEOUT_S = 900.0
_HEADING = re.compile(r"^## (\S+) – (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One finding.

    Attributes:
        name: of what was looked at.
        is_right: whether it can be released like that.
        text: what was found.
    """

    name: str
    is_right: bool
    text: str


def changelog(text: str) -> Row:
    """Whether the newest part of the changelog is this version's, and has a date."""
    found = _HEADING.search(text)
    if found is None:
        return Row("changelog", False, "has no part")
    version, date = found.groups()
    is_right = version == VERSION and re.fullmatch(r"\d{4}-\d\d-\d\d", date) is not None
    return Row("changelog", is_right, f"{version} – {date}; this is {VERSION}")


def unlocked(requirements: list[str], pinned: list[lock.Pinned]) -> list[str]:
    """Which requirements the lock file does not meet, for any Python of a host."""
    versions = {one.name: one.version for one in pinned}
    missing = []
    for text in requirements:
        one = Requirement(text)
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        if name not in versions or not one.specifier.contains(versions[name], prereleases=True):
            missing.append(text)
    return missing


def locked() -> Row:
    """Whether the lock file has what pyproject.toml asks for."""
    missing = unlocked(lock.dependencies(), lock.parse(lock.REQUIREMENTS.read_text(encoding="utf-8")))
    return Row("lock file", not missing, f"run make lock: {', '.join(missing)}" if missing else "meets pyproject.toml")


def expected() -> set[str]:
    """The names of all files of a release."""
    packages = {f"{name}_{VERSION}_amd64.deb" for name in (deb.RUNTIME, deb.GUEST)}
    python = {f"pykata-{VERSION}.tar.gz", f"pykata-{VERSION}-py3-none-any.whl"}
    return packages | python | {release.ARCHIVE, release.BILL, release.CONTAINER}


def files(out: Path) -> Iterator[Row]:
    """What can be said of the files of a release alone."""
    there = {path.name for path in out.iterdir() if path.is_file()} if out.is_dir() else set()
    missing = expected() - there
    more = {name for name in there - expected() if not name.startswith(release.SUMS)}
    yield Row("files", not (missing | more), f"missing: {sorted(missing)}, more: {sorted(more)}")
    if missing:
        return
    listed = (out / release.SUMS).read_text() if (out / release.SUMS).is_file() else ""
    yield Row("digests", listed == release.sums(out), f"{len(listed.splitlines())} in {release.SUMS}")
    size = (out / release.ARCHIVE).stat().st_size
    yield Row("archive", size <= release.MAX_ARCHIVE, f"{size / 1e6:.1f} MB of {release.MAX_ARCHIVE / 1e6:.0f}")
    with zipfile.ZipFile(out / f"pykata-{VERSION}-py3-none-any.whl") as wheel:
        header = wheel.read(f"pykata-{VERSION}.dist-info/METADATA").decode()
    version = HeaderParser().parsestr(header)["Version"]
    yield Row("wheel", version == VERSION, f"is of version {version}")
    signed = [name for name in there if name in (f"{release.SUMS}.sig", f"{release.SUMS}.asc")]
    yield Row("signature", bool(signed), ", ".join(signed) or "not signed yet")


def lintian(out: Path) -> Row:
    """What lintian says of the packages, overrides aside."""
    packages = [str(out / f"{name}_{VERSION}_amd64.deb") for name in (deb.RUNTIME, deb.GUEST)]
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", *packages],
        capture_output=True,
        text=True,
        check=False,
        timeout=_LINTIAN_TIMEOUT_S,
    )
    words = (done.stdout + done.stderr).strip().replace("\n", "; ")
    return Row("lintian", done.returncode == 0, words or "has nothing to say")


def repository() -> Iterator[Row]:
    """Whether what was built is what was committed, and is tagged."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=lock.PROJECT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain").splitlines()
    yield Row(
        "commit",
        not changed,
        f"{len(changed)} files are not committed" if changed else git("log", "-1", "--format=%h %s"),
    )
    tags = git("tag", "--points-at", "HEAD").split()
    yield Row("tag", f"v{VERSION}" in tags, ", ".join(tags) or f"not tagged v{VERSION} yet")


def main() -> int:
    """Print all rows; returns 1 if one is not right."""
    out = lock.PROJECT / "dist"
    rows = [
        *repository(),
        changelog((lock.PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")),
        locked(),
        *files(out),
    ]
    if all((out / name).is_file() for name in expected()):
        rows.append(lintian(out))
    for row in rows:
        sys.stdout.write(f"{'ok' if row.is_right else 'NOT YET':<8} {row.name:<10} {row.text}\n")
    return 0 if all(row.is_right for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
