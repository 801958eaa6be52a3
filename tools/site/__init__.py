"""The web site, from the Markdown of this repository: `make docs`.

The documents are plain Markdown that a forge shows as well as the site does. What only the site needs is added here:
the navigation, which is the list of docs/index.md, and drawings in the page instead of beside it.
"""
