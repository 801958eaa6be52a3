"""The containers' common limits follow the guest's memory, and what is mounted in memory fits into them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata.agent.reserve import Reserve, memory_limit

MIB = 1 << 20


class Guest:
    """Files of a guest with 1024 MiB, of which 904 MiB are available: the containers get 840 MiB."""

    def __init__(self, directory: Path) -> None:
        self.cgroup = directory / "kata"
        self.cgroup.mkdir()
        for name in ("memory.max", "pids.max", "memory.current"):
            (self.cgroup / name).write_text("0")
        self.meminfo = directory / "meminfo"
        self.set_memory(1024)
        self.reserve = Reserve(str(self.cgroup), str(self.meminfo))
        self.reserve.set_up()

    def set_memory(self, total: int, *, hugetlb: int = 0) -> None:
        (self.cgroup / "memory.max").write_text("")  # a file of the kernel has no old text behind the new one
        values = {"MemTotal": total, "MemAvailable": 904, "Hugetlb": hugetlb}
        self.meminfo.write_text("".join(f"{key}: {value << 10} kB\n" for key, value in values.items()))

    @property
    def limit(self) -> int:
        return int((self.cgroup / "memory.max").read_text()) // MIB


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def test_the_agent_keeps_an_eighth_and_no_more_than_enough() -> None:
    assert memory_limit(128 * MIB, 80 * MIB) == 64 * MIB
    assert memory_limit(4096 * MIB, 4000 * MIB) == 3936 * MIB


def test_limits_are_set(guest: Guest) -> None:
    assert guest.limit == 840
    assert (guest.cgroup / "pids.max").read_text() == str(1024 * MIB // (64 << 10))


def test_the_limit_follows_memory_that_comes_and_goes(guest: Guest) -> None:
    guest.set_memory(2048)
    guest.reserve.refresh()
    assert guest.limit == 840 + 1024
    guest.set_memory(1024)
    guest.reserve.refresh()
    assert guest.limit == 840
    guest.set_memory(1024, hugetlb=512)
    guest.reserve.refresh()
    assert guest.limit == 840 - 512


def test_a_limit_does_not_kill_what_is_there(guest: Guest) -> None:
    (guest.cgroup / "memory.current").write_text(str(800 * MIB))
    guest.set_memory(512)
    guest.reserve.refresh()
    assert guest.limit == 800


def test_those_without_a_size_share_what_is_left(guest: Guest) -> None:
    room = 840 * MIB * 7 // 8
    sizes = []
    for options in ([], ["nosuid"], ["size=64g"], ["size=100%"], [], []):
        fitted, promised = guest.reserve.fit(options)
        assert [option for option in fitted if option.startswith("size=")] == [f"size={promised}"]
        assert "nosuid" in fitted or "nosuid" not in options
        sizes.append(promised)
    assert sizes == [room // 2, room // 4, room // 8, room // 8, room // 8, room // 8]
    for size in sizes:
        guest.reserve.give_back(size)
    assert guest.reserve.fit([])[1] == room // 2


@pytest.mark.parametrize(
    "options",
    [["size=735m"], ["size=1k", "mode=755"], ["size=64%"], ["ro"], ["nr_blocks=5"], ["size=nonsense"], ["size=0"]],
)
def test_other_sizes_are_what_the_spec_says(guest: Guest, options: list[str]) -> None:
    assert guest.reserve.fit(options) == (options, 0)


def test_an_agent_that_owns_no_guest_limits_nothing(tmp_path: Path) -> None:
    reserve = Reserve(str(tmp_path))
    reserve.refresh()
    assert reserve.fit(["size=64t"]) == (["size=64t"], 0)
    assert list(tmp_path.iterdir()) == []
