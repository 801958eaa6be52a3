"""PCI addresses in the environment."""

from __future__ import annotations

import pytest

from kata.agent.devices.environment import translate

ADDRESSES = {"0000:3b:00.0": "0000:01:00.0", "0000:3b:00.1": "0000:02:00.0", "0000:01:00.0": "0000:3b:00.1"}


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("PCIDEVICE_X=0000:3b:00.0", "PCIDEVICE_X=0000:01:00.0"),
        # Computed from what was there: the first one's new address is the third one's old one.
        ("PCIDEVICE_X=0000:3b:00.0,0000:01:00.0", "PCIDEVICE_X=0000:01:00.0,0000:3b:00.1"),
        ("PCIDEVICE_X=0000:3B:00.0", "PCIDEVICE_X=0000:01:00.0"),
        ("PCIDEVICE_X=0000:aa:00.0,rubbish", "PCIDEVICE_X=0000:aa:00.0,rubbish"),
        ("PCIDEVICE_X=10000:3b:00.0", "PCIDEVICE_X=10000:3b:00.0"),
        ('PCIDEVICE_X_INFO={"0000:3b:00.1":{"a":1}}', 'PCIDEVICE_X_INFO={"0000:02:00.0":{"a":1}}'),
        ("OTHER=0000:3b:00.0", "OTHER=0000:3b:00.0"),
        ("PCIDEVICE_X", "PCIDEVICE_X"),
        ("PCIDEVICE_X=", "PCIDEVICE_X="),
    ],
)
def test_translation(variable: str, expected: str) -> None:
    assert translate([variable], ADDRESSES) == [expected]
