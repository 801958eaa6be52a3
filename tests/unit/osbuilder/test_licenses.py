from __future__ import annotations

from kata.osbuilder import licenses

MACHINE_READABLE = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: x

Files: *
Copyright: somebody
License: MIT

Files: y
Copyright: somebody
License: GPL-2+ or BSD-3-clause
 This program is free: /usr/share/common-licenses/GPL-3

License:  MIT
 Permission is granted.
"""


def test_the_fields_of_a_machine_readable_file_are_read() -> None:
    assert licenses.names(MACHINE_READABLE) == ["GPL-2+ or BSD-3-clause", "MIT"]


def test_of_others_the_common_licenses_are_known() -> None:
    text = "It is under the GPL, see /usr/share/common-licenses/GPL-2.\nand `/usr/share/common-licenses/LGPL-2.1'."
    assert licenses.names(text) == ["GPL-2", "LGPL-2.1"]


def test_nothing_is_made_up_or_harmful() -> None:
    assert licenses.names("") == []
    assert licenses.names("Do what you want.") == []
    hostile = "Format: copyright-format\n" + "License: \x1b[31mred\n" + "".join(f"License: L{n}\n" for n in range(999))
    assert len(licenses.names(hostile)) == 64
    assert not any("\x1b" in name for name in licenses.names(hostile))
