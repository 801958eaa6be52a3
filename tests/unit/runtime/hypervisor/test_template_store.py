"""The directory of all templates: what goes, what is remembered, who may change it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kata.errors import DeadlineExceeded, FailedPrecondition, KataError, ResourceExhausted
from kata.runtime.hypervisor.template import store, template
from tests.support.templates import make_template


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "templates").mkdir()
    return tmp_path / "templates"


class TestRemove:
    def test_only_the_one_that_failed(self, root: Path) -> None:
        make_template(root)
        with template.open_template(root, "k") as failed:
            store.discard(root, "k")
            make_template(root)
            store.discard(root, "k", failed.memory)
        template.open_template(root, "k").close()

    def test_what_is_not_there(self, root: Path) -> None:
        store.discard(root, "k")
        assert list(root.iterdir()) == []

    def test_where_nothing_can_be_removed(self, root: Path) -> None:
        with pytest.raises(FailedPrecondition, match="cannot remove template"):
            store.discard(root / "nowhere", "k")

    def test_the_most_recently_used_stay(self, root: Path) -> None:
        for number in range(4):
            directory = make_template(root, f"k{number}")
            os.utime(directory, (number, number))
        with template.open_template(root, "k0") as found:
            template.mark_used(found)
        assert store.prune(root, 2) == ["k2", "k1"]
        assert sorted(path.name for path in root.iterdir()) == ["k0", "k3"]

    def test_a_domain_with_many_costs_the_others_none(self, root: Path) -> None:
        for number in range(6):
            os.utime(make_template(root, f"greedy{number}", {"domain": "greedy"}), (100 + number,) * 2)
        os.utime(make_template(root, "modest", {"domain": "modest"}), (1, 1))
        os.utime(make_template(root, "of-all", {}), (2, 2))
        assert store.prune(root, 4) == ["greedy3", "greedy2", "greedy1", "greedy0"]
        assert store.prune(root, 2) == ["greedy4", "modest"], "of as many, the most recently used"

    def test_broken_ones_go(self, root: Path) -> None:
        make_template(root, "good")
        (make_template(root, "bad") / template.STATE).unlink()
        assert {listed.key: bool(listed.problem) for listed in store.list_templates(root)} == {
            "good": False,
            "bad": True,
        }
        assert store.prune(root, 5) == ["bad"]

    def test_what_dead_builders_left_goes(self, root: Path) -> None:
        (root / f"{store.BUILDING}x").mkdir()
        (root / f"{store.BUILDING}x/memory").write_bytes(b"m")
        make_template(root)
        store.sweep(root)
        assert [path.name for path in root.iterdir()] == ["k"]

    def test_all(self, root: Path) -> None:
        make_template(root)
        (root / f"{store.BUILDING}x").mkdir()
        store.remember_failure(root, "other", "why")
        assert store.destroy(root) == ["k"]
        assert list(root.iterdir()) == []


class TestFailures:
    def test_are_remembered_for_a_while(self, root: Path) -> None:
        assert store.recent_failure(root, "k") is None
        store.remember_failure(root, "k", "the reason")
        assert store.recent_failure(root, "k") == "the reason"
        old = time.time() - 3600
        os.utime(root / ".failed-k", (old, old))
        assert store.recent_failure(root, "k") is None
        store.sweep(root)
        assert list(root.iterdir()) == []

    def test_where_nothing_can_be_written(self, tmp_path: Path) -> None:
        store.remember_failure(tmp_path / "nowhere", "k", "the reason")
        assert store.recent_failure(tmp_path / "nowhere", "k") is None


class TestLock:
    async def test_excludes_and_has_a_deadline(self, root: Path) -> None:
        async with store.locked(root, 1.0):
            with pytest.raises(DeadlineExceeded, match="has held the lock of"):
                async with store.locked(root, 0.1):
                    pass
        async with store.locked(root, 0.1):
            pass

    async def test_makes_the_directory_for_root_alone(self, tmp_path: Path) -> None:
        async with store.locked(tmp_path / "new/templates", 1.0):
            pass
        assert (tmp_path / "new/templates").stat().st_mode & 0o777 == 0o700

    async def test_a_place_that_cannot_be_written_to(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(KataError, match="cannot keep templates in") as caught:
            async with store.locked(tmp_path / "file/templates", 1.0):
                pass
        assert caught.value.hint is not None


def test_room_on_the_disk(root: Path) -> None:
    store.require_room(root, 1)
    with pytest.raises(ResourceExhausted, match="MiB left; a template may need"):
        store.require_room(root, 1 << 62)
