"""The site as a whole: built from the documents, read from the disk as a reader would who has no network."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from tests.support import browser as chromium
from tests.support.documents import ROOT
from tools.site.pages import PLACES, place

pytestmark = pytest.mark.timeout(300)

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


def test_every_document_is_a_page_that_the_list_names(site: Path) -> None:
    documents = [str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")]
    wanted = {str(Path(place(document) or "").with_suffix(".html")) for document in [*documents, *PLACES]}
    found = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    assert found == wanted | {"search.html"}
    start = Html((site / "index.html").read_text(encoding="utf-8"))
    assert wanted - {"index.html"} <= {urldefrag(link)[0] for link in start.links}


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for path, html in parsed(site):
        for url in html.loads:
            assert not urlsplit(url).scheme.startswith("http"), f"{path}: {url}"
            assert not urlsplit(url).netloc, f"{path}: {url}"
            assert (path.parent / unquote(urlsplit(url).path)).exists() or url.startswith("data:"), f"{path}: {url}"
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//|@import\s+[\"'](?:https?:)?//", text), path


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


def test_the_search_has_the_words(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert index.startswith("Search.setIndex(")
    for word in ("enable_annotations", "virtiofsd", "standbi"):  # the last one as the stemmer writes it
        assert word in index


@pytest.fixture(scope="module")
def reader(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    if what := chromium.missing():
        pytest.skip(f"needs {what}")
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as reader:
        yield reader
        assert reader.complaints == []
        assert [url for url in reader.requests if not url.startswith(("file:", "data:", "about:"))] == []


@pytest.mark.parametrize("width", [360, 820, 1440])
@pytest.mark.parametrize("page", ["index", "how-it-works", "guide/storage", "reference/annotations"])
def test_a_page_fits_its_window(reader: chromium.Page, site: Path, page: str, width: int) -> None:
    """What is too wide, such as a table, scrolls by itself."""
    reader.size(width, 900)
    reader.open(f"file://{site}/{page}.html")
    assert reader.evaluate("document.documentElement.scrollWidth") <= width
    assert reader.evaluate("document.querySelector('article h1').innerText.length") > 0


def test_light_and_dark(reader: chromium.Page, site: Path) -> None:
    """As the reader's system has it; the contrast is that of WCAG's level AA for text."""
    reader.size(1440, 900)
    shades = []
    for scheme in ("light", "dark"):
        reader.scheme(scheme)
        reader.open(f"file://{site}/index.html")
        colour = "getComputedStyle(document.querySelector({})).{}.match(/[0-9.]+/g).map(Number)"
        ink, paper, link, drawn = (
            _luminance(reader.evaluate(colour.format(json.dumps(where), what)))
            for where, what in (
                ("article p", "color"),
                ("body", "backgroundColor"),
                ("article a.reference", "color"),
                (".drawing svg text", "fill"),
            )
        )
        shades.append(paper)
        for one in (ink, link, drawn):
            assert (max(one, paper) + 0.05) / (min(one, paper) + 0.05) >= 4.5, (scheme, one, paper)
    assert shades[0] > 0.8 > 0.2 > shades[1]


def _luminance(rgb: list[float]) -> float:
    """Relative luminance, 0 to 1. Source: WCAG 2.2, "relative luminance"."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in (x / 255 for x in rgb)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_search_finds_without_a_server(reader: chromium.Page, site: Path) -> None:
    reader.open(f"file://{site}/search.html?q=enable_annotations")
    links = reader.wait("[...document.querySelectorAll('#search-results li a')].map(a => a.href)", "results")
    assert any("/reference/configuration.html" in link for link in links)
