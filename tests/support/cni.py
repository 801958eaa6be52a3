"""A pod's network made by real CNI plugins, as containerd's CRI plugin makes it: by bridge, or by macvlan.

Reference: the CNI specification, 1.0.0, sections 1 (configuration) and 2 (execution protocol).
"""

from __future__ import annotations

import json
import subprocess
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kata.errors import FailedPrecondition
from kata.runtime.network import cni

#: Where Debian's containernetworking-plugins has them.
PLUGINS = Path("/usr/lib/cni")
_NETNS = Path("/run/netns")
_TIMEOUT_S = 20.0
#: 10.224.0.0/12 in networks of 256.
_SUBNET_BASE, _SUBNETS = 224, 16 * 256


@dataclass(frozen=True)
class Pod:
    """A network namespace with an interface eth0.

    Attributes:
        netns: the path of the namespace.
        addresses: those that the plugin gave, without the length of the prefix, in its order.
    """

    name: str
    netns: Path
    addresses: tuple[str, ...]


class Network:
    """Pods on a network of one plugin.

    Args:
        config: the plugin's.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def write(self, directory: Path, *chained: Mapping[str, Any]) -> None:
        """Write the configuration for somebody else who runs the plugins, containerd for one.

        Args:
            chained: plugins that come after the network's own.
        """
        network = {key: value for key, value in self._config.items() if key not in ("cniVersion", "name")}
        whole = {
            "cniVersion": "1.0.0",
            "name": self._config["name"],
            "plugins": [network, *chained],
        }
        (directory / "10-pods.conflist").write_text(json.dumps(whole), encoding="utf-8")

    @contextmanager
    def pod(self, name: str) -> Iterator[Pod]:
        """A namespace on the network, removed afterwards."""
        netns = _NETNS / name
        network = cni.parse(json.dumps(self._config))
        _ip("netns", "add", name)
        try:
            with TemporaryDirectory(prefix="kata-cni-") as directory:
                record = Path(directory) / "record.json"
                try:
                    yield Pod(name, netns, cni.add(network, name, str(netns), record, (str(PLUGINS),)).addresses)
                finally:
                    cni.delete(record)
        finally:
            _ip("netns", "delete", name, check=False)


class Bridge(Network):
    """A network of pods: one bridge in the caller's network namespace. A context manager that removes it.

    Args:
        name: the bridge's, at most 15 characters.
        directory: for the plugin's records.

    Attributes:
        subnet: the first three numbers of its IPv4 network of 256, as "10.231.77"; IPv6 is fd00:X:Y:Z::/64 of them.
        taken: the plugin's record of the addresses in use: a file for each, called as the address is.
    """

    def __init__(self, name: str, directory: Path, *, mtu: int = 1500) -> None:
        self.name = name
        self.subnet = subnet = _free_subnet(name)
        self.taken = directory / "cni" / name
        self.gateway = f"{subnet}.1"
        six = f"fd00:{subnet.replace('.', ':')}"
        self.gateway6 = f"{six}::1"
        config = {
            "cniVersion": "1.0.0",
            "name": name,
            "type": "bridge",
            "bridge": name,
            "isGateway": True,
            "isDefaultGateway": True,
            "mtu": mtu,
            "ipam": {
                "type": "host-local",
                "dataDir": str(directory / "cni"),
                "ranges": [[{"subnet": f"{subnet}.0/24"}], [{"subnet": f"{six}::/64"}]],
            },
        }
        super().__init__(config)

    def __enter__(self) -> Bridge:
        return self

    def __exit__(self, *_: object) -> None:
        _ip("link", "delete", self.name, check=False)


class Macvlan(Network):
    """Pods side by side on one interface, each with a hardware address of its own. A context manager.

    The interface is made for it, one end of a veth pair: what is put on it reaches the other pods, and nobody else.

    Args: as of `Bridge`.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        subnet = _free_subnet(name)
        six = f"fd00:{subnet.replace('.', ':')}"
        config = {
            "cniVersion": "1.0.0",
            "name": name,
            "type": "macvlan",
            "master": name,
            "mode": "bridge",
            "ipam": {
                "type": "host-local",
                "dataDir": str(directory / "cni"),
                "ranges": [[{"subnet": f"{subnet}.0/24"}], [{"subnet": f"{six}::/64"}]],
            },
        }
        super().__init__(config)

    def __enter__(self) -> Macvlan:
        _ip("link", "add", self.name, "type", "veth", "peer", "name", f"{self.name}p")
        for end in (self.name, f"{self.name}p"):
            _ip("link", "set", end, "up")
        return self

    def __exit__(self, *_: object) -> None:
        _ip("link", "delete", self.name, check=False)


def _free_subnet(name: str) -> str:
    """A network of the name's own that the host does not reach otherwise.

    Two runs of the tests at once, or one after another that was killed, would share a fixed one: the host then reaches
    the pods of the older bridge only.
    """
    taken = subprocess.run(["ip", "route", "show"], check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    first = zlib.crc32(name.encode())
    for number in range(first, first + _SUBNETS):
        subnet = f"10.{_SUBNET_BASE + number % _SUBNETS // 256}.{number % 256}"
        if f"{subnet}.0/24 " not in taken.stdout:
            return subnet
    raise FailedPrecondition("test network: all subnets are taken")


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, timeout=_TIMEOUT_S)
