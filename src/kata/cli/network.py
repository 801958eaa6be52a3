"""The network of `kata run --network`: a network namespace held by this process and configured by CNI plugins."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kata.errors import FailedPrecondition, NotFound
from kata.linux.namespaces import new_network
from kata.oci.spec import Spec
from kata.runtime.ledger.journal import Ledger
from kata.runtime.ledger.kinds import CNI
from kata.runtime.network import cni

#: The network that needs no configuration.
BUILT_IN = "bridge"
_RESOLV_CONF = "/etc/resolv.conf"
_RECORD = "cni.json"


def join_network(spec: Spec, name: str, sandbox_id: str, ledger: Ledger) -> Spec:
    """Create a network namespace with an interface on a network, and put it into the spec.

    The namespace lives as long as this process, which holds it open; what the plugins keep elsewhere is on the ledger.
    A /etc/resolv.conf is mounted too, with the plugins' name servers or else the host's, unless the spec has one.

    Args:
        spec: the container's; it is not changed.
        name: of the network.
        sandbox_id: the plugins' container id (CNI_CONTAINERID).
        ledger: holds the network, and its directory the files.

    Returns:
        The spec with the namespace and the mount.

    Raises:
        NotFound: the network does not exist.
        FailedPrecondition: the namespace cannot be created, or a plugin fails.
    """
    network = find(name)
    try:
        namespace = new_network()
    except OSError as error:
        raise FailedPrecondition(f"cannot create a network namespace: {error.strerror}") from error
    path = f"/proc/{os.getpid()}/fd/{namespace}"
    record = Path(ledger.directory) / _RECORD
    ledger.hold(CNI, str(record))
    added = cni.add(network, sandbox_id, path, record)
    linux: dict[str, Any] = {**(spec.get("linux") or {})}
    others = [entry for entry in linux.get("namespaces") or () if entry["type"] != "network"]
    linux["namespaces"] = [*others, {"type": "network", "path": path}]
    mounts: list[Any] = list(spec.get("mounts") or ())
    servers = added.nameservers or host_nameservers()
    if servers and not any(mount["destination"] == _RESOLV_CONF for mount in mounts):
        file = Path(ledger.directory) / "resolv.conf"
        file.write_text("".join(f"nameserver {server}\n" for server in servers), encoding="utf-8")
        file.chmod(0o644)
        mounts.append({"destination": _RESOLV_CONF, "type": "bind", "source": str(file), "options": ["rbind", "ro"]})
    edited: Any = {**spec, "linux": linux, "mounts": mounts}
    return edited  # type: ignore[no-any-return]


def find(name: str, directory: Path = cni.CONFIGURATIONS) -> cni.ConfList:
    """Return the network of that name; BUILT_IN may be configured but need not be.

    Raises:
        NotFound: the network does not exist.
    """
    try:
        return cni.find(name, directory)
    except NotFound:
        if name != BUILT_IN:
            raise
    # Without masquerading the container reaches this host only. The bridge plugin needs iptables for it.
    masquerade = shutil.which("iptables") is not None
    bridge = {
        "type": "bridge",
        "bridge": "kata0",
        "isGateway": True,
        "ipMasq": masquerade,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.86.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    return cni.ConfList(BUILT_IN, "1.0.0", (bridge,))


def host_nameservers(path: str = _RESOLV_CONF) -> Sequence[str]:
    """Return the host's name servers (resolv.conf(5)), without loopback addresses, which only the host can reach."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            words = [line.split() for line in file]
    except OSError:
        return ()
    found = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    return tuple(server for server in found if not server.startswith("127.") and server != "::1")
