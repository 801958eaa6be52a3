"""Images of directories: how much room one takes is known before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kata.runtime.images.erofs import most_bytes, write_image

pytestmark = pytest.mark.root


def test_an_image_is_no_larger_than_was_thought(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(40):
        below = tree / f"directory-{number}"
        below.mkdir(parents=True)
        for name in range(number):
            (below / f"{name:0{1 + 6 * number}}").write_bytes(b"x" * (name * number))
        (below / "link").symlink_to("x" * 90 * (number + 1))
    large = tree / "large"
    large.write_bytes(os.urandom(1_000_001))
    os.setxattr(large, "trusted.one", b"y" * 900)
    for number in range(9):
        os.link(large, tree / f"again-{number}")
    write_image(tree, tmp_path / "image")
    size = (tmp_path / "image").stat().st_size
    # Ends of small files share blocks, which nobody counts on.
    assert size <= most_bytes(tree) < 4 * size
