from __future__ import annotations

from pathlib import Path

from benchmarks.parts.kernels import newest_by_kernel
from kata.osbuilder.store import GuestImage

NOWHERE = Path("/nonexistent")


def image(version: str, release: str) -> GuestImage:
    return GuestImage(version, NOWHERE, NOWHERE, NOWHERE, NOWHERE, {"kernel_release": release})


def test_the_newest_image_of_each_kernel_is_measured() -> None:
    newest, other, old = image("3", "6.12-a"), image("2", "6.12-b"), image("1", "6.12-a")
    assert newest_by_kernel([newest, other, old]) == {"6.12-a": newest, "6.12-b": other}
    assert newest_by_kernel([]) == {}
