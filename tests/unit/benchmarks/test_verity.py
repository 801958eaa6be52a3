from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.parts.verity import twins
from kata.architecture import ARM64, HOST
from kata.errors import NotFound
from kata.osbuilder.store import GuestImage

NOWHERE = Path("/nonexistent")


def image(version: str, form: str, *, verity: bool, recipe: str = "default") -> GuestImage:
    root = {"format": form, "verity": verity}
    manifest = {"recipe": recipe, "kernel_release": "6.12", "root": root, "architecture": HOST.name}
    return GuestImage(version, NOWHERE, NOWHERE, NOWHERE, NOWHERE, manifest)


def test_what_is_compared_differs_by_verity_alone() -> None:
    alone, checked = image("5", "ext4", verity=True), image("4", "erofs", verity=True)
    of_another = image("7", "erofs", verity=True)
    of_another.manifest["architecture"] = ARM64.name
    filled = image("6", "erofs", verity=False)
    filled.manifest["inputs"] = {"other": "ab"}
    debug, plain, old = (
        image("3", "erofs", verity=False, recipe="debug"),
        image("2", "erofs", verity=False),
        image("1", "erofs", verity=False),
    )
    assert twins([of_another, filled, alone, checked, debug, plain, old]) == {"unchecked": plain, "dm-verity": checked}
    with pytest.raises(NotFound) as caught:
        twins([filled, alone, debug, plain])
    assert caught.value.hint
