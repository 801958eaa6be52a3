"""The sysctls of a pod's network namespace that somebody has set, such as CNI's plugin "tuning": found by comparison.

The guest's kernel has defaults of its own, so it gets only what differs from those of the host's kernel, which a new
namespace shows. It does not for IPv4's settings of interfaces: those it inherits from the host's, and what a pod has on
purpose may be the same. They are compared with what the kernel is built with, so that the guest has them as a container
without a VM has.

Source: the kernel's net/ipv4/devinet.c, and Documentation/admin-guide/sysctl/net.rst on devconf_inherit_init_net.
"""

from __future__ import annotations

from collections.abc import Mapping

#: In which each interface has a directory.
_OF_INTERFACES = ("net/ipv4/conf/", "net/ipv4/neigh/", "net/ipv6/conf/", "net/ipv6/neigh/")
#: Directories there that are no interface's.
_COMMON = frozenset(("all", "default", "lo"))
#: IPv4's settings of interfaces as the kernel is built; those that are not named are 0.
_BUILT_IN = {
    "accept_redirects": "1",
    "secure_redirects": "1",
    "send_redirects": "1",
    "shared_media": "1",
    "igmpv2_unsolicited_report_interval": "10000",
    "igmpv3_unsolicited_report_interval": "1000",
    "arp_evict_nocarrier": "1",
}
_IPV4_CONF = "net/ipv4/conf/"
#: What follows from something else, or belongs to this kernel.
_DERIVED = frozenset(("mtu", "stable_secret", "fib_multipath_hash_seed"))


def changed(now: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """The sysctls of a namespace that differ from a new one's.

    Args:
        now: those of the namespace.
        new: those of a new namespace. An interface that it lacks has what it has by default.
    """
    return {
        name: value
        for name, value in now.items()
        if name.rpartition("/")[2] not in _DERIVED and value != _default(name, value, new)
    }


def _default(name: str, value: str, new: Mapping[str, str]) -> str:
    """What a sysctl is by default; its value if that is not known."""
    tree, interface, key = _split(name)
    if name == "net/ipv4/ip_forward":
        return "0"
    if tree == _IPV4_CONF:
        if interface == "lo" and key in ("disable_policy", "disable_xfrm"):
            return "1"
        if key == "accept_source_route":
            return "0" if interface == "all" else "1"
        return _BUILT_IN.get(key, "0")
    return new.get(name, new.get(f"{tree}default/{key}", value))


def of_interface(name: str, sysctls: Mapping[str, str]) -> dict[str, str]:
    """Those of one interface."""
    return {key: value for key, value in sysctls.items() if _split(key)[1] == name}


def of_namespace(sysctls: Mapping[str, str]) -> dict[str, str]:
    """Those of the namespace as a whole, and of its loopback interface."""
    return {key: value for key, value in sysctls.items() if _split(key)[1] in {"", *_COMMON}}


def _split(name: str) -> tuple[str, str, str]:
    """The tree that a sysctl of an interface is in, the interface, and the rest; for others the first two are ""."""
    tree = next((tree for tree in _OF_INTERFACES if name.startswith(tree)), "")
    if not tree:
        return "", "", name
    interface, _, key = name.removeprefix(tree).partition("/")
    return tree, interface, key
