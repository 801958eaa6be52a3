from __future__ import annotations

from pathlib import Path

from benchmarks.parts.kernels import newest_by_kernel
from kata.osbuilder.store import GuestImage

NOWHERE = Path("/nonexistent")


def image(version: str, release: str, *, verity: bool = False, recipe: str = "default") -> GuestImage:
    manifest = {"kernel_release": release, "recipe": recipe, "root": {"format": "erofs", "verity": verity}}
    return GuestImage(version, NOWHERE, NOWHERE, NOWHERE, NOWHERE, manifest)


def test_the_newest_image_of_each_kernel_is_measured() -> None:
    newest, other, old = image("3", "6.12-a"), image("2", "6.12-b"), image("1", "6.12-a")
    assert newest_by_kernel([newest, other, old]) == {"6.12-a": newest, "6.12-b": other}
    unlike = [image("5", "6.12-a", verity=True), image("4", "6.12-a", recipe="debug")]
    assert newest_by_kernel([*unlike, newest, other]) == {"6.12-a": newest, "6.12-b": other}
    assert newest_by_kernel([]) == {}
