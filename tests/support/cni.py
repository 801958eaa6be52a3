"""A pod's network, made by real CNI plugins as containerd's CRI plugin makes it: by bridge or by macvlan.

Reference: the CNI specification, 1.0.0, sections 1 (configuration) and 2 (execution protocol).
"""

from __future__ import annotations

import ipaddress
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

#: Installed by Debian's containernetworking-plugins.
PLUGINS = Path("/usr/lib/cni")
_NETNS = Path("/run/netns")
_TIMEOUT_S = 20.0
#: The /24 networks of 10.224.0.0/12.
_SUBNET_BASE, _SUBNETS = 224, 16 * 256


@dataclass(frozen=True)
class Pod:
    """A network namespace with an interface eth0.

    Attributes:
        name: of the pod, and of the namespace for ip-netns(8).
        netns: the path of the namespace.
        addresses: assigned by the plugin, without prefix lengths, in its order.
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
        """Write the configuration for another program that runs the plugins, such as containerd.

        Args:
            directory: of configurations.
            chained: plugins that run after the network's own.
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
        mtu: of the pods' interfaces, in bytes.

    Attributes:
        subnet: the first three numbers of its IPv4 /24, such as "10.231.77"; its IPv6 network is fd00:10:231:77::/64.
        taken: the plugin's record of the addresses in use: a file for each, with the address as its name.
    """

    def __init__(self, name: str, directory: Path, *, mtu: int = 1500) -> None:
        self.name = name
        self.subnet = subnet = _free_subnet(name)
        self.taken = directory / "cni" / name
        self.gateway = f"{subnet}.1"
        six = f"fd00:{subnet.replace('.', ':')}"
        self.gateway6 = str(ipaddress.ip_address(f"{six}::1"))
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
    """Pods on one interface, each with its own hardware address. A context manager.

    The interface is one end of a new veth pair, so packets reach the other pods only.

    Args:
        name: the interface's, at most 14 characters.
        directory: for the plugin's records.
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
    """Return a /24 network, by the name, to which the host has no route yet.

    A fixed one would be shared by two test runs at once, or with one that was killed: the host then reaches only the
    pods of the older bridge.

    Raises:
        FailedPrecondition: all are in use.
    """
    taken = subprocess.run(["ip", "route", "show"], check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    first = zlib.crc32(name.encode())
    for number in range(first, first + _SUBNETS):
        subnet = f"10.{_SUBNET_BASE + number % _SUBNETS // 256}.{number % 256}"
        if f"{subnet}.0/24 " not in taken.stdout:
            return subnet
    raise FailedPrecondition("test network: all subnets are in use")


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, timeout=_TIMEOUT_S)
