"""`python -m tools.site [DIRECTORY]`: build the site, into build/site by default."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.site.pages import PLACES, pages

ROOT = Path(__file__).resolve().parents[2]


def build(output: Path) -> int:
    """Build all pages; a link that leads nowhere is an error. Returns Sphinx's exit status."""
    documents = {path: (ROOT / path).read_text(encoding="utf-8") for path in chain(_paths("*.md"), PLACES)}
    drawings = {path: (ROOT / path).read_text(encoding="utf-8") for path in _paths("*.svg")}
    with TemporaryDirectory(prefix="kata-site-") as scratch:
        for place, text in pages(documents, drawings).items():
            path = Path(scratch, "source", place)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        sphinx = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--nitpicky", "--quiet"]
        sphinx += ["--conf-dir", str(Path(__file__).parent), "--doctree-dir", f"{scratch}/doctrees"]
        return subprocess.run([*sphinx, f"{scratch}/source", str(output)], check=False).returncode


def _paths(pattern: str) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob(pattern))]


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    if importlib.util.find_spec("sphinx") is None:
        sys.stderr.write("tools.site: Sphinx is not installed; `make docs` installs it\n")
        return 1
    output = Path(arguments[0]) if arguments else ROOT / "build/site"
    status = build(output)
    if status == 0:
        sys.stdout.write(f"{output}/index.html\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
