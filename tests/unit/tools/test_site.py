"""The site: how documents become pages, and what the pages load."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from tools import drawings
from tools.site.pages import PLACES, figure, navigation, page, pages, place

ROOT = Path(__file__).parents[3]
SVG = '<svg data-source="1">\n<style>\ntext { fill: red }\n</style>\n\n<text>a</text></svg>\n'
#: Attributes by which a page loads something, as opposed to a link that a reader may follow.
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}
#: Of <link>: what a browser does not load when it shows the page.
NOT_LOADED = {"prev", "next", "search", "author", "index", "canonical"}


class Html(HTMLParser):
    """What a page loads, links to, and can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.ids |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif (key := LOADED.get(tag)) and key in given and given.get("rel") not in NOT_LOADED:
            self.loads.append(given[key])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("needs Sphinx: make docs installs it")
    output = tmp_path_factory.mktemp("site")
    argv = [sys.executable, "-m", "tools.site", str(output)]
    built = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    return output


def parsed(site: Path) -> Iterator[tuple[Path, Html]]:
    for path in sorted(site.rglob("*.html")):
        yield path, Html(path.read_text(encoding="utf-8"))


@pytest.mark.timeout(300)
def test_every_document_is_a_page_that_the_list_names(site: Path) -> None:
    documents = [str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")]
    wanted = {str(Path(place(document) or "").with_suffix(".html")) for document in [*documents, *PLACES]}
    found = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    assert found == wanted | {"search.html"}
    start = Html((site / "index.html").read_text(encoding="utf-8"))
    assert wanted - {"index.html"} <= {urldefrag(link)[0] for link in start.links}


@pytest.mark.timeout(300)
def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for path, html in parsed(site):
        for url in html.loads:
            assert not urlsplit(url).scheme.startswith("http"), f"{path}: {url}"
            assert not urlsplit(url).netloc, f"{path}: {url}"
            assert (path.parent / unquote(urlsplit(url).path)).exists() or url.startswith("data:"), f"{path}: {url}"
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//|@import\s+[\"'](?:https?:)?//", text), path


@pytest.mark.timeout(300)
def test_links_and_anchors(site: Path) -> None:
    found = dict(parsed(site))
    for path, html in found.items():
        for link in html.links:
            url, anchor = urldefrag(link)
            if urlsplit(url).scheme:
                continue
            target = (path.parent / unquote(url)).resolve() if url else path
            assert target in found, f"{path}: {link}"
            assert not anchor or unquote(anchor) in found[target].ids, f"{path}: {link}"


@pytest.mark.timeout(300)
def test_the_search_has_the_words(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert index.startswith("Search.setIndex(")
    for word in ("enable_annotations", "virtiofsd", "standbi"):  # the last one as the stemmer writes it
        assert word in index


def test_links_lead_to_where_documents_are_on_the_site() -> None:
    def rewritten(document: str, text: str) -> str:
        return page(document, text, {})

    assert rewritten("docs/a.md", "[b](guide/b.md#c)") == "[b](guide/b.md#c)"
    assert rewritten("docs/guide/b.md", "[x](../../CHANGELOG.md#y)") == "[x](../project/changelog.md#y)"
    assert rewritten("CONTRIBUTING.md", "[x](docs/guide/b.md)") == "[x](../guide/b.md)"
    assert rewritten("CONTRIBUTING.md", "[`x`](src/kata) and [y](#z)") == "`x` and [y](#z)"
    assert rewritten("docs/a.md", "[b](https://example.com/c)") == "[b](https://example.com/c)"
    assert rewritten("docs/a.md", "```sh {setting=run}\n[a](b.txt)\n```\n") == "```sh\n[a](b.txt)\n```\n"


def test_a_drawing_becomes_part_of_its_page() -> None:
    text = page("docs/a.md", '![A "b".](x.svg)\n', {"docs/x.svg": SVG})
    assert text == figure(SVG, 'A "b".') + "\n"
    assert 'aria-label="A &quot;b&quot;."' in text
    assert "\n\n" not in text  # which would end the HTML
    assert "<style>" not in text


def test_the_list_is_the_navigation() -> None:
    index = "# A\n\n[x](no.md)\n\n## One\n\n- [B](b.md): text\n- [C](guide/c.md)\n\n## Two\n\n- [D](../SECURITY.md)\n"
    first, second = navigation(index)
    assert first.splitlines()[1:] == ["```{toctree}", ":hidden:", ":caption: One", "", "b", "guide/c", "```"]
    assert "\nproject/security\n" in second
    found = pages({"docs/index.md": index, "README.md": ""}, {})
    assert found == {"index.md": page("docs/index.md", index, {}) + first + second}


def test_drawings_are_fresh() -> None:
    texts = sorted(drawings.FOLDER.glob("*.dot"))
    assert texts
    assert [drawing.name for drawing in texts if not drawings.is_fresh(drawing)] == [], "run: make docs"
    assert {path.stem for path in drawings.FOLDER.glob("*.svg")} == {path.stem for path in texts}


def test_what_is_left_of_graphvizs_svg() -> None:
    head = '<?xml?>\n<!-- a\nb -->\n<svg width="9pt" height="8pt"\n viewBox="0">\n'
    svg = head + '<g id="node1">\n<title>t</title>\n</g></svg>'
    assert drawings.finished(svg, "text").splitlines() == [
        f'<svg data-source="{drawings.digest("text")}" width="9" height="8"',
        ' viewBox="0">',
        *drawings._STYLE.splitlines(),
        "<g>",
        "</g></svg>",
    ]
