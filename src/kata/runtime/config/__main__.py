"""`python3 -m kata.runtime.config docs|default`: print the reference page, or a file with every default."""

from __future__ import annotations

import sys

from kata.runtime.config.reference import default_toml, markdown

WRITERS = {"docs": markdown, "default": default_toml}


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    if len(arguments) != 1 or arguments[0] not in WRITERS:
        sys.stderr.write("usage: python3 -m kata.runtime.config docs|default\n")
        return 2
    sys.stdout.write(WRITERS[arguments[0]]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
