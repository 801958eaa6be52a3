"""The site's pages: texts in, texts out.

The documents link to each other by their paths in the repository. On the site, docs/ is the root, and a few documents
from elsewhere are below project/.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator, Mapping

#: Documents outside of docs/, and where they are on the site.
PLACES = {
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
    "SPECIFICATION.md": "project/specification.md",
    "src/kata/kernel_build/patches/README.md": "project/kernel-patches.md",
}
#: Its list is the navigation, and it is the first page.
INDEX = "docs/index.md"

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
#: What follows the language says how a block is tested; readers need not see it.
_FENCE = re.compile(r"^```(\w+)[ \t]+\{.*\}$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:)([^)#\s]*)(#[^)\s]*)?\)")
_DRAWING = re.compile(r"^!\[(.*)\]\((.*\.svg)\)$", re.MULTILINE)
#: Percent of its size to which a drawing shrinks in a narrow window, so that its text stays readable; then it scrolls.
_SMALLEST = 80
_SECTION = re.compile(r"^## (.*)$", re.MULTILINE)
_ITEM = re.compile(r"^- \[.*?\]\(([^)#]*\.md)\)", re.MULTILINE)


def place(document: str) -> str | None:
    """Where a document of the repository is on the site; None if it is not there."""
    if document.startswith("docs/"):
        return document.removeprefix("docs/")
    return PLACES.get(document)


def pages(documents: Mapping[str, str], drawings: Mapping[str, str]) -> dict[str, str]:
    """The sources of all pages by their places.

    Args:
        documents: Markdown by path in the repository.
        drawings: SVG by path in the repository.

    Raises:
        KeyError: a drawing is not there.
    """
    found = {}
    for document, text in documents.items():
        if where := place(document):
            found[where] = page(document, text, drawings)
    found[place(INDEX) or ""] += "".join(navigation(documents[INDEX]))
    return found


def page(document: str, text: str, drawings: Mapping[str, str]) -> str:
    """One document as a page."""

    def drawing(match: re.Match[str]) -> str:
        return figure(drawings[_path(document, match[2])], match[1])

    def link(match: re.Match[str]) -> str:
        if not match[2]:
            return match[0]
        to = place(_path(document, match[2]))
        if to is None:
            return match[1]
        start = os.path.dirname(place(document) or "")
        return f"[{match[1]}]({os.path.relpath(to, start or '.')}{match[3] or ''})"

    parts, end = [], 0
    for block in _FENCED.finditer(text):
        parts += [_LINK.sub(link, _DRAWING.sub(drawing, text[end : block.start()])), _FENCE.sub(r"```\1", block[0])]
        end = block.end()
    return "".join([*parts, _LINK.sub(link, _DRAWING.sub(drawing, text[end:]))])


def _path(document: str, link: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(document), link))


def figure(svg: str, alternative: str) -> str:
    """A drawing as a part of the page, whose colours it takes.

    Args:
        svg: the file's text; a blank line would end the HTML for Markdown.
        alternative: what it shows, for those who do not see it.
    """
    svg = re.sub(r"<style>.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    inner = "\n".join(line for line in svg.splitlines() if line.strip())
    if width := re.search(r'width="(\d+)"', inner):
        inner = inner.replace("<svg ", f'<svg style="min-width: {int(width[1]) * _SMALLEST // 100}px" ', 1)
    return f'<figure class="drawing" role="img" aria-label="{html.escape(alternative)}">\n{inner}\n</figure>'


def navigation(index: str) -> Iterator[str]:
    """What Sphinx makes the sidebar of: a tree for each section of the list."""
    sections = _SECTION.split(index)[1:]
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        if items := [item.removesuffix(".md") for item in _relative(_ITEM.findall(text))]:
            yield "\n".join(["\n```{toctree}", ":hidden:", f":caption: {title}", "", *items, "```", ""])


def _relative(links: list[str]) -> Iterator[str]:
    for link in links:
        if to := place(_path(INDEX, link)):
            yield to
