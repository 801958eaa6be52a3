"""PCI paths, resolved in made-up trees of sysfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata.agent.devices import pci_path
from kata.errors import InvalidArgument


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root bus with a bridge in slot 9, a root port in slot 4, function 3, and a bridge behind the bridge."""
    root = tmp_path / "pci0000:00"
    for device in (
        "0000:00:09.0/pci_bus/0000:05",
        "0000:00:09.0/0000:05:1f.0",
        "0000:00:09.0/0000:05:02.0/pci_bus/0000:06",
        "0000:00:09.0/0000:05:02.0/0000:06:01.0",
        "0000:00:04.3/pci_bus/0000:01",
        "0000:00:04.3/0000:01:00.0",
        "0000:00:0a.0/pci_bus/0000:07",
        "0000:00:0a.0/pci_bus/0000:08",
    ):
        (root / device).mkdir(parents=True)
    return root


def test_the_root_bus_is_where_acpi_or_a_device_tree_puts_it(tmp_path: Path) -> None:
    assert pci_path.root_bus(str(tmp_path)) == f"{tmp_path}/devices/pci0000:00"
    found = tmp_path / "devices/platform/4010000000.pcie/pci0000:00"
    found.mkdir(parents=True)
    assert pci_path.root_bus(str(tmp_path)) == str(found)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("09", "0000:00:09.0"),
        ("09/1f", "0000:00:09.0/0000:05:1f.0"),
        ("09/02/01", "0000:00:09.0/0000:05:02.0/0000:06:01.0"),
        ("04.3/00", "0000:00:04.3/0000:01:00.0"),
        ("09/1e", None),
        ("04/00", None),
        ("09/1f/00", None),
    ],
)
def test_paths(root: Path, path: str, expected: str | None) -> None:
    assert pci_path.resolve(path, str(root)) == (f"{root}/{expected}" if expected else None)


def test_a_bridge_has_one_bus(root: Path) -> None:
    with pytest.raises(InvalidArgument, match="2 buses"):
        pci_path.resolve("0a/00", str(root))


@pytest.mark.parametrize("path", ["", "/", "9", "09/", "20", "09.8", "../etc", "09/0g", "09\n", "/".join(["01"] * 9)])
def test_rubbish(path: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid PCI path"):
        pci_path.parse(path)
