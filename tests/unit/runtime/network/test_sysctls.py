"""Which sysctls somebody has set in a namespace, and whose they are."""

from __future__ import annotations

from kata.runtime.network.sysctls import changed, of_interface, of_namespace

NEW = {
    "net/core/somaxconn": "4096",
    "net/ipv4/ip_forward": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv6/conf/default/accept_ra": "1",
    "net/ipv6/conf/default/mtu": "1280",
}


def test_only_what_differs_from_a_new_namespace() -> None:
    interface = {
        "net/ipv4/conf/eth0.7/rp_filter": "0",
        "net/ipv4/conf/eth0.7/accept_redirects": "1",
        "net/ipv6/conf/eth0.7/accept_ra": "0",
        "net/ipv6/conf/eth0.7/mtu": "1400",
    }
    now = NEW | interface | {"net/core/somaxconn": "500", "net/ipv4/only_here": "1"}
    found = changed(now, NEW)
    assert found == {"net/core/somaxconn": "500", "net/ipv6/conf/eth0.7/accept_ra": "0"}
    assert of_interface("eth0.7", found) == {"net/ipv6/conf/eth0.7/accept_ra": "0"}
    assert of_interface("eth0", found) == {}
    assert of_namespace(found) == {"net/core/somaxconn": "500"}


def test_what_is_all_interfaces_and_loopbacks_is_the_namespaces() -> None:
    names = [f"net/ipv4/conf/{which}/rp_filter" for which in ("all", "default", "lo")]
    found = changed(NEW | dict.fromkeys(names, "1"), NEW)
    assert [*of_namespace(found)] == names


def test_what_the_host_has_as_well_is_a_pods_too() -> None:
    """A new namespace inherits IPv4's settings of the host's interfaces."""
    inherited = {"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/forwarding": "1", "net/ipv4/conf/eth0/rp_filter": "2"}
    assert changed(NEW | inherited, NEW | inherited) == inherited
