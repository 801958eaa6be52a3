"""Which roots of containerd can be disks."""

from __future__ import annotations

import pytest

from kata.runtime.sandbox.rootfs_layers import Overlay, overlay_of
from kata.runtime.storage.host_paths import RootfsMount

OPTIONS = ("index=off", "workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs")


def test_an_overlay_of_directories() -> None:
    found = overlay_of([RootfsMount("overlay", "overlay", OPTIONS)])
    assert found == Overlay(("/s/2/fs", "/s/1/fs"), "/s/3/fs", "/s/3/work")


@pytest.mark.parametrize(
    "rootfs",
    [
        pytest.param([], id="none"),
        pytest.param([RootfsMount("bind", "/s/3/fs", ("rw", "rbind"))], id="an image without layers"),
        pytest.param([RootfsMount("overlay", "overlay", OPTIONS)] * 2, id="several"),
        pytest.param([RootfsMount("overlay", "overlay", (*OPTIONS[:1], OPTIONS[3]))], id="a view"),
        pytest.param([RootfsMount("overlay", "overlay", (*OPTIONS, "userxattr"))], id="another way to mark"),
        pytest.param([RootfsMount("overlay", "overlay", (*OPTIONS, "metacopy=on"))], id="files in two layers"),
        pytest.param([RootfsMount("overlay", "overlay", (*OPTIONS[:3], "lowerdir=/a\\:b"))], id="escaped names"),
        pytest.param([RootfsMount("overlay", "overlay", (OPTIONS[0], "workdir=/w", *OPTIONS[2:]))], id="elsewhere"),
    ],
)
def test_what_is_shared(rootfs: list[RootfsMount]) -> None:
    assert overlay_of(rootfs) is None
