from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from kata.cli import gc
from kata.runtime.ledger.files import remove_tree
from kata.runtime.ledger.journal import Ledger, claim
from kata.runtime.ledger.kinds import FILE, TREE
from tests.support.waiting import eventually


@dataclass(frozen=True)
class Host:
    """A host's directories of sandboxes, below a scratch directory."""

    state: Path
    trees: Path

    def die(self, name: str, *held: tuple[str, str]) -> None:
        """Have a sandbox end without giving anything back."""
        ledger = Ledger(str(self.state / name))
        for kind, value in held:
            ledger.hold(kind, value)
        ledger.close()

    def tree(self, name: str) -> Path:
        (self.trees / name / "rootfs/etc").mkdir(parents=True)
        (self.trees / name / "rootfs/etc/passwd").touch()
        return self.trees / name

    def collect(self) -> dict[str, gc.Released]:
        return {released.sandbox_id: released for released in gc.run(self.state, self.trees)}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return Host(tmp_path / "state", tmp_path / "trees")


def test_nothing_to_do(host: Host) -> None:
    assert host.collect() == {}
    assert gc.leftovers(host.state, host.trees) == []


def test_gives_back_what_the_dead_held_and_keeps_off_the_living(host: Host, tmp_path: Path) -> None:
    (tmp_path / "socket").touch()
    tree = host.tree("dead")
    host.die("dead", (FILE, str(tmp_path / "socket")), (TREE, str(tree)))
    living_tree = host.tree("living")
    living = claim(str(host.state / "living"))
    living.hold(TREE, str(living_tree))

    assert gc.leftovers(host.state, host.trees) == ["dead"]
    collected = host.collect()

    assert list(collected) == ["dead"]
    assert collected["dead"].held == (f"file {tmp_path / 'socket'}", f"tree {tree}")
    assert collected["dead"].problems == ()
    assert not tree.exists()
    assert not (tmp_path / "socket").exists()
    assert not (host.state / "dead").exists()
    assert living_tree.exists()
    assert living.release() == []
    assert not living_tree.exists()


def test_tree_whose_ledger_a_reboot_took_is_found(host: Host) -> None:
    tree = host.tree("orphan")
    assert gc.leftovers(host.state, host.trees) == ["orphan"]
    assert host.collect()["orphan"].held == (f"tree {tree}",)
    assert not tree.exists()


def test_state_directory_without_a_ledger_goes(host: Host) -> None:
    (host.state / "half").mkdir(parents=True)
    assert host.collect()["half"].problems == ()
    assert not (host.state / "half").exists()


def test_strangers_stay(host: Host) -> None:
    (host.state / "..hidden").mkdir(parents=True)
    (host.state / "accel.json").touch()
    assert host.collect() == {}
    assert sorted(os.listdir(host.state)) == ["..hidden", "accel.json"]


def test_what_cannot_be_given_back_is_told_and_stays_for_the_next_time(host: Host, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    host.die("dead", (FILE, str(tmp_path / "directory")))
    (problem,) = host.collect()["dead"].problems
    assert str(tmp_path / "directory") in problem
    assert gc.leftovers(host.state, host.trees) == ["dead"]


# --------------------------------------------------------------------------------- trees, as the ledger removes them


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A tree whose innermost path is longer than any path may be."""
    home = os.getcwd()
    top = tmp_path / "deep"
    top.mkdir()
    os.chdir(top)
    try:
        for _ in range(600):
            os.mkdir("d" * 20)
            os.chdir("d" * 20)
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY))
    finally:
        os.chdir(home)
    yield top
    remove_tree(str(top))


def test_tree_deeper_than_a_path_can_name(deep: Path) -> None:
    (deep / "removed-0").mkdir()
    (deep / "removed-1").touch()
    remove_tree(str(deep))
    assert not deep.exists()


def test_links_out_of_a_tree_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").touch()
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "link").symlink_to(tmp_path / "outside")
    (tree / "sub/link").symlink_to(tmp_path / "outside")
    remove_tree(str(tree))
    assert not tree.exists()
    assert (tmp_path / "outside/file").exists()


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove_tree(str(tmp_path / "missing"))


def test_who_waited_for_a_lock_does_not_get_that_of_a_removed_file(tmp_path: Path) -> None:
    first = claim(str(tmp_path / "s"))
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(Ledger, str(tmp_path / "s"), wait_s=60.0)
        eventually(lambda: openers(tmp_path / "s/ledger"), "two openers", lambda fds: len(fds) == 2)
        first.release()
        second = waiting.result(60)
    assert os.stat(tmp_path / "s/ledger").st_ino == os.fstat(second.fileno()).st_ino
    assert second.release() == []


def openers(path: Path) -> list[str]:
    """This process's descriptors of a file."""
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == str(path)]
