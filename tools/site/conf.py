"""Sphinx's settings. Nothing that a page loads is on another host: fonts are the reader's own, search is a script."""

from kata.version import VERSION

project = "pykata"
version = release = VERSION
html_title = f"pykata {VERSION}"
language = "en"

extensions = ["myst_parser"]
# Anchors of headings are those that a forge makes.
myst_heading_anchors = 4
highlight_language = "text"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_use_index = False
# It would be read from the found pages, which a browser does not allow without a server.
html_show_search_summary = False
# Code in titles and quotes in text stay as they are written: they are often part of a command.
smartquotes = False

_FONTS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif'
_CODE = 'ui-monospace, "Cascadia Mono", "Noto Sans Mono", "DejaVu Sans Mono", Menlo, monospace'
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {
        "font-stack": _FONTS,
        "font-stack--monospace": _CODE,
        "color-brand-primary": "#0b5f72",
        "color-brand-content": "#0b5f72",
        "color-brand-visited": "#4d4a86",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6cc7da",
        "color-brand-content": "#6cc7da",
        "color-brand-visited": "#b3aeea",
    },
}
