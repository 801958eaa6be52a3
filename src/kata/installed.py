"""What came with this installation, beside the package: a package or an archive brings a guest image along.

    <here>/kata/       this package
    <here>/images/     guest images, one of which is `current`; see `kata.osbuilder.store`

Every start of a sandbox imports this module.
"""

from __future__ import annotations

from pathlib import Path

#: Where guest images of this installation are, if it brought any. Images that were built on this host win.
IMAGES = Path(__file__).absolute().parent.with_name("images")
