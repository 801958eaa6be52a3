from __future__ import annotations

from typing import Any

import pytest

from kata.oci.device_rules import allows_disk, allows_everything


@pytest.mark.parametrize(
    ("rule", "privileged"),
    [
        ({"allow": True}, True),
        ({"allow": True, "access": "rwm"}, True),
        ({"allow": True, "type": "a", "major": -1, "minor": None}, True),
        ({"allow": False}, False),
        ({"type": "a"}, False),
        ({"allow": True, "type": "b"}, False),
        ({"allow": True, "major": 8}, False),
        ({"allow": True, "minor": 0}, False),
    ],
)
def test_what_allows_everything(rule: dict[str, Any], privileged: bool) -> None:
    deny = {"allow": False, "access": "rwm"}
    assert allows_everything([deny, rule]) == privileged
    assert not allows_everything([deny])


def test_a_rule_for_one_disk() -> None:
    rule = {"allow": True, "type": "b", "major": 8, "minor": 16, "access": "r"}
    assert allows_disk(rule, (8, 16))
    assert not allows_disk(rule, (8, 0))
    assert not allows_disk({**rule, "type": "c"}, (8, 16))
    assert not allows_disk({**rule, "allow": False}, (8, 16))
