"""What `make dist` has made, installed in a clean root of each Debian release: a container runs, and nothing stays.

    python -m tools.try_release [SUITE...]

Each way of docs/guide/install.md is gone through by `tools/try_release.sh`.
"""

from __future__ import annotations

import sys

from kata.osbuilder import suite
from tools import test_hosts

WAYS = ("deb", "archive", "wheel")


def main(arguments: list[str]) -> int:
    """Try the releases that are named, or all; returns the first status that is not 0."""
    for release in suite.releases():
        if release.host and (not arguments or release.suite in arguments):
            sys.stdout.write(f"Debian {release.number} ({release.suite})\n")
            sys.stdout.flush()
            if status := test_hosts.run(release, [f"sh tools/try_release.sh {way}" for way in WAYS]):
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
