"""Drawings of the documents, from their texts: docs/drawings/*.dot to SVG beside them, by Graphviz.

    python -m tools.drawings    writes those anew whose text has changed

The SVG is checked in, so that a forge shows it, and building the site needs no Graphviz. It names the digest of its
text; another version of Graphviz, which would draw it slightly differently, changes nothing.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs/drawings"
_DRAW_TIMEOUT_S = 60

#: Where it is an image of its own. On the site it is a part of the page (`tools.site`), which has its own colours.
_STYLE = """\
<style>
@media (prefers-color-scheme: dark) {
text { fill: #d8dee0 }
.node path, .node polygon { fill: #20292c; stroke: #6b777c }
.guest > path { fill: #16302f }
}
</style>"""


def digest(text: str) -> str:
    """What an SVG says of the text that it was made from."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_fresh(drawing: Path) -> bool:
    """Whether the SVG beside a text was made from it."""
    svg = drawing.with_suffix(".svg")
    return svg.exists() and f'data-source="{digest(drawing.read_text("utf-8"))}"' in svg.read_text("utf-8")


def finished(svg: str, text: str) -> str:
    """Graphviz's SVG with the digest and without what is of no use in a page.

    Args:
        svg: as `dot -Tsvg` prints it.
        text: what it was made from.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->\n?|<title>.*?</title>\n?", "", svg, flags=re.DOTALL)
    # Points, which browsers take for a third more than pixels.
    svg = re.sub(r'(width|height)="(\d+)pt"', r'\1="\2"', svg)
    svg = re.sub(r' id="[^"]*"', "", svg)  # they would be there twice in a page with two drawings
    svg = svg.replace('font-family="DejaVu Sans"', 'font-family="DejaVu Sans, sans-serif"')
    svg = svg.replace("<svg ", f'<svg data-source="{digest(text)}" ', 1)
    head, _, body = svg.partition(">\n")
    return f"{head}>\n{_STYLE}\n{body}"


def main() -> int:
    """Draw what has changed; returns the exit status."""
    stale = [drawing for drawing in sorted(FOLDER.glob("*.dot")) if not is_fresh(drawing)]
    if stale and shutil.which("dot") is None:
        sys.stderr.write("tools.drawings: Graphviz is not installed; `make docs` installs it\n")
        return 1
    for drawing in stale:
        text = drawing.read_text(encoding="utf-8")
        dot = subprocess.run(
            ["dot", "-Tsvg"], input=text, capture_output=True, text=True, timeout=_DRAW_TIMEOUT_S, check=False
        )
        if dot.returncode:
            sys.stderr.write(f"{drawing}: {dot.stderr.strip()}\n")
            return 1
        drawing.with_suffix(".svg").write_text(finished(dot.stdout, text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
