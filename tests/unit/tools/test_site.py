"""How documents become pages, and texts drawings; tests/integration/test_site.py has the site as a whole."""

from __future__ import annotations

from tools import drawings
from tools.site.pages import figure, navigation, page, pages

SVG = '<svg data-source="1">\n<style>\ntext { fill: red }\n</style>\n\n<text>a</text></svg>\n'


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
