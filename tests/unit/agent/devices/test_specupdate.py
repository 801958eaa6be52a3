"""What becomes of a spec when its devices have got numbers in the guest."""

from __future__ import annotations

from typing import Any

import pytest

from kata.agent.devices.specupdate import GuestDevice, GuestNode, update
from kata.errors import InvalidArgument


def device(path: str, major: int, minor: int, kind: str = "b") -> dict[str, Any]:
    return {"path": path, "type": kind, "major": major, "minor": minor, "fileMode": 0o660}


def rule(major: int, minor: int, kind: str = "b", access: str = "rw") -> dict[str, Any]:
    return {"allow": True, "type": kind, "major": major, "minor": minor, "access": access}


DENY = {"allow": False, "access": "rwm"}


def spec(devices: list[dict[str, Any]], *rules: dict[str, Any]) -> dict[str, Any]:
    return {"root": {"path": "/"}, "linux": {"devices": devices, "resources": {"devices": [DENY, *rules]}}}


def test_numbers_and_rules_change_together() -> None:
    before = spec([device("/dev/a", 7, 0), device("/dev/null", 1, 3, "c")], rule(7, 0), rule(1, 3, "c"))
    copy = spec([device("/dev/a", 7, 0), device("/dev/null", 1, 3, "c")], rule(7, 0), rule(1, 3, "c"))
    after = update(before, {"/dev/a": GuestDevice("b", 254, 16)})
    assert after == spec([device("/dev/a", 254, 16), device("/dev/null", 1, 3, "c")], rule(254, 16), rule(1, 3, "c"))
    assert before == copy


def test_a_number_in_the_guest_that_is_another_ones_on_the_host() -> None:
    before = spec([device("/dev/a", 254, 32), device("/dev/b", 254, 16)], rule(254, 32, access="r"), rule(254, 16))
    found = {"/dev/a": GuestDevice("b", 254, 16), "/dev/b": GuestDevice("b", 254, 32)}
    assert update(before, found) == spec(
        [device("/dev/a", 254, 16), device("/dev/b", 254, 32)], rule(254, 16, access="r"), rule(254, 32)
    )


def test_equal_numbers_of_another_kind_stay_apart() -> None:
    before = spec([device("/dev/a", 7, 1), device("/dev/vcs1", 7, 1, "c")], rule(7, 1), rule(7, 1, "c"))
    after = update(before, {"/dev/a": GuestDevice("b", 254, 16)})
    assert after == spec([device("/dev/a", 254, 16), device("/dev/vcs1", 7, 1, "c")], rule(254, 16), rule(7, 1, "c"))


def test_one_device_at_two_paths() -> None:
    both = {path: GuestDevice("b", 254, 16) for path in ("/dev/a", "/dev/b")}
    after = update(spec([device("/dev/a", 7, 0), device("/dev/b", 7, 0)], rule(7, 0)), both)
    assert after == spec([device("/dev/a", 254, 16), device("/dev/b", 254, 16)], rule(254, 16))


def test_the_path_in_the_container_can_be_another() -> None:
    before = spec([device("/dev/vfio/7", 240, 1, "c")], rule(240, 1, "c"))
    after = update(before, {"/dev/vfio/7": GuestDevice("c", 241, 0, "/dev/vfio/2")})
    assert after == spec([device("/dev/vfio/2", 241, 0, "c")], rule(241, 0, "c"))


def test_nothing_found_changes_nothing() -> None:
    before = spec([device("/dev/a", 7, 0)], rule(7, 0))
    assert update(before, {}) == before


def test_without_rules_none_are_made() -> None:
    before = {"linux": {"devices": [device("/dev/a", 7, 0)]}}
    after = update(before, {"/dev/a": GuestDevice("b", 254, 16)})
    assert after == {"linux": {"devices": [device("/dev/a", 254, 16)]}}


def test_nodes_of_the_guest_are_added_with_their_rules() -> None:
    after = update(spec([]), {}, [GuestNode("/dev/nvme0n1", "b", 259, 0)])
    node = {**device("/dev/nvme0n1", 259, 0), "fileMode": 0o600, "uid": 0, "gid": 0}
    assert after == spec([node], rule(259, 0, access="rwm"))


def test_nodes_of_the_guest_take_no_path_that_is_taken() -> None:
    with pytest.raises(InvalidArgument, match="two devices of the container have the path /dev/a"):
        update(spec([device("/dev/a", 7, 0)]), {}, [GuestNode("/dev/a", "b", 259, 0)])


def test_groups_may_change_places() -> None:
    before = spec([device("/dev/vfio/1", 240, 1, "c"), device("/dev/vfio/2", 240, 2, "c")], rule(240, 1, "c", "r"))
    found = {
        "/dev/vfio/1": GuestDevice("c", 240, 2, "/dev/vfio/2"),
        "/dev/vfio/2": GuestDevice("c", 240, 1, "/dev/vfio/1"),
    }
    assert update(before, found) == spec(
        [device("/dev/vfio/2", 240, 2, "c"), device("/dev/vfio/1", 240, 1, "c")], rule(240, 2, "c", "r")
    )


def test_two_devices_at_one_path() -> None:
    before = spec([device("/dev/vfio/1", 240, 1, "c"), device("/dev/vfio/2", 240, 2, "c")])
    with pytest.raises(InvalidArgument, match="two devices of the container have the path /dev/vfio/2"):
        update(before, {"/dev/vfio/1": GuestDevice("c", 241, 0, "/dev/vfio/2")})


@pytest.mark.parametrize(
    ("devices", "found", "said"),
    [
        ([], {"/dev/a": GuestDevice("b", 1, 1)}, "has no device /dev/a"),
        ([device("/dev/a", 7, 0)], {"/dev/a": GuestDevice("c", 1, 1)}, "has type 'c' in the guest, not 'b'"),
        (
            [device("/dev/a", 7, 0), device("/dev/b", 7, 0)],
            {"/dev/a": GuestDevice("b", 254, 16), "/dev/b": GuestDevice("b", 254, 32)},
            "the number of another device",
        ),
    ],
)
def test_contradictions(devices: list[dict[str, Any]], found: dict[str, GuestDevice], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        update(spec(devices), found)
