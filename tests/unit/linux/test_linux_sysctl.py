from __future__ import annotations

import pytest

from kata.linux import sysctl
from kata.linux.namespaces import inside_new

pytestmark = pytest.mark.root


def test_what_is_written_is_read_in_that_namespace_only() -> None:
    before = sysctl.read_all()["net/core/somaxconn"]
    with inside_new("net"):
        sysctl.write("net/core/somaxconn", "77")
        found = sysctl.read_all()
    assert found["net/core/somaxconn"] == "77"
    assert "net/ipv4/conf/lo/rp_filter" in found
    assert "net/ipv4/tcp_available_congestion_control" not in found, "it is read-only"
    assert "net/ipv4/route/flush" not in found, "it is write-only"
    assert sysctl.read_all()["net/core/somaxconn"] == before


@pytest.mark.parametrize("name", ["", "net", "net/", "kernel/panic", "net/../kernel/panic", "net/./core", "net/x\0y"])
def test_others_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="invalid name of a network sysctl"):
        sysctl.write(name, "1")


def test_one_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        sysctl.write("net/core/no_such_thing", "1")
    assert sysctl.read_all("net/no_such_tree") == {}
