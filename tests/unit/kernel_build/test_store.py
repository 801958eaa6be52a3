from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kata.errors import FailedPrecondition, InvalidArgument, NotFound
from kata.kernel_build import store
from kata.osbuilder.kernel import CustomKernel
from kata.osbuilder.store import BUILDING, MANIFEST

A, B, C = (f"6.12.118-kata1-{letter * 12}" for letter in "abc")
Publish = Callable[[str], CustomKernel]


def test_what_is_published_is_found(tmp_path: Path, publish: Publish) -> None:
    kernel = publish(A)
    assert kernel == store.find(tmp_path / "kernels", A)
    assert (kernel.release, kernel.date) == ("6.12.118-kata1", 7)
    assert kernel.vmlinux.read_text() == f"{A} vmlinux"
    assert kernel.vmlinux.stat().st_mode & 0o777 == 0o444


def test_two_are_kept(tmp_path: Path, publish: Publish) -> None:
    for version in (A, B, C):
        publish(version)
    assert store.versions(tmp_path / "kernels") == [C, B]
    assert not list((tmp_path / "kernels").glob(f"{BUILDING}*"))


def test_a_damaged_one_is_told_and_replaced(tmp_path: Path, publish: Publish) -> None:
    kernel = publish(A)
    for name in store.FILES:
        (kernel.directory / name).chmod(0o644)
        (kernel.directory / name).write_text("x")
        with pytest.raises(FailedPrecondition, match="does not match its digest") as caught:
            store.find(tmp_path / "kernels", A)
        assert caught.value.hint
        publish(A)
        (kernel.directory / name).unlink()
        with pytest.raises(FailedPrecondition, match="No such file"):
            store.find(tmp_path / "kernels", A)
        publish(A)
    assert store.find(tmp_path / "kernels", A) == kernel


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"format": 1}', '{"format": "x"}', "[" * 100_000])
def test_a_manifest_that_is_none(tmp_path: Path, publish: Publish, text: str) -> None:
    (publish(A).directory / MANIFEST).write_text(text)
    with pytest.raises(FailedPrecondition, match="is damaged"):
        store.find(tmp_path / "kernels", A)


def test_a_manifest_of_a_newer_version(tmp_path: Path, publish: Publish) -> None:
    path = publish(A).directory / MANIFEST
    path.write_text(json.dumps({"format": store.FORMAT + 1, "kernels": []}))
    with pytest.raises(FailedPrecondition, match="manifest of format 2; this version knows 1") as caught:
        store.find(tmp_path / "kernels", A)
    assert "newer version" in str(caught.value.hint)


def test_what_is_not_there(tmp_path: Path) -> None:
    assert store.versions(tmp_path / "kernels") == []
    with pytest.raises(NotFound, match=f"there is no kernel {A}"):
        store.find(tmp_path / "kernels", A)
    for version in ("", "..", "../x", "a/b", "x" * 200):
        with pytest.raises(InvalidArgument, match="invalid version"):
            store.find(tmp_path, version)


def test_what_a_killed_build_left_is_none(tmp_path: Path, publish: Publish) -> None:
    left = tmp_path / "kernels" / f"{BUILDING}{A}"
    left.mkdir(parents=True)
    (left / "vmlinux").touch()
    assert store.versions(tmp_path / "kernels") == []
    publish(A)
    assert not left.exists()
