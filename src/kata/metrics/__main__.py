"""`python3 -m kata.metrics`: print the reference page."""

from __future__ import annotations

import sys

from kata.metrics.reference import markdown

if __name__ == "__main__":
    sys.stdout.write(markdown())
