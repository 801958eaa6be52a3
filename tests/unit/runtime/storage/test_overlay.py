"""Overlay options beyond one page are shortened without a change of meaning."""

from __future__ import annotations

import os

from kata.runtime.storage.overlay import MAX_MOUNT_DATA, compact

SNAPSHOTS = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"


def options(layers: int) -> str:
    lower = ":".join(f"{SNAPSHOTS}/{number}/fs" for number in range(layers))
    return f"index=off,workdir={SNAPSHOTS}/999/work,upperdir={SNAPSHOTS}/999/fs,lowerdir={lower}"


def test_what_fits_is_left_alone() -> None:
    assert compact(options(3)) == ("", options(3))


def test_many_layers_are_named_relative_to_their_parent() -> None:
    directory, data = compact(options(120))
    assert directory == SNAPSHOTS
    assert len(data) <= MAX_MOUNT_DATA
    lower = data.partition("lowerdir=")[2].split(":")
    assert [os.path.join(directory, path) for path in lower] == [f"{SNAPSHOTS}/{number}/fs" for number in range(120)]
    assert f"upperdir={SNAPSHOTS}/999/fs" in data


def test_long_options_without_layers_are_left_to_the_kernel_to_refuse() -> None:
    assert compact("x" * 5000) == ("", "x" * 5000)
