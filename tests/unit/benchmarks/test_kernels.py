from __future__ import annotations

from pathlib import Path

from benchmarks.parts.kernels import newest_by_kernel
from kata.architecture import ARM64, HOST, Architecture
from kata.osbuilder.store import GuestImage

NOWHERE = Path("/nonexistent")


def image(
    version: str, release: str, *, verity: bool = False, recipe: str = "default", arch: Architecture = HOST
) -> GuestImage:
    root = {"format": "erofs", "verity": verity}
    manifest = {"kernel_release": release, "recipe": recipe, "root": root, "architecture": arch.name}
    return GuestImage(version, NOWHERE, NOWHERE, NOWHERE, NOWHERE, manifest)


def test_the_newest_image_of_each_kernel_is_measured() -> None:
    newest, other, old = image("3", "6.12-a"), image("2", "6.12-b"), image("1", "6.12-a")
    assert newest_by_kernel([newest, other, old]) == {"6.12-a": newest, "6.12-b": other}
    filled = image("6", "6.12-a")
    filled.manifest["inputs"] = {"other": "ab"}
    unlike = [filled, image("5", "6.12-a", verity=True), image("4", "6.12-a", recipe="debug")]
    unlike.append(image("3", "6.12-c", arch=ARM64))
    assert newest_by_kernel([*unlike, newest, other]) == {"6.12-a": newest, "6.12-b": other}
    assert newest_by_kernel([]) == {}
