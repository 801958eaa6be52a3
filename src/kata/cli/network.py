"""The network of `kata run --network`: a namespace that this process holds, filled by CNI's plugins."""

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

#: What there is without a configuration.
BUILT_IN = "bridge"
_RESOLV_CONF = "/etc/resolv.conf"
_RECORD = "cni.json"


def join_network(spec: Spec, name: str, sandbox_id: str, ledger: Ledger) -> Spec:
    """Make a network namespace with an interface on a network, and give the container that.

    The namespace lives as long as this process, which holds it open; what the plugins keep elsewhere is on the ledger.

    Raises:
        NotFound: there is no such network.
        FailedPrecondition: a plugin fails.
    """
    network = find(name)
    try:
        namespace = new_network()
    except OSError as error:
        raise FailedPrecondition(f"cannot make a network namespace: {error.strerror}") from error
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
    """The network of that name. Raises NotFound."""
    try:
        return cni.find(name, directory)
    except NotFound:
        if name != BUILT_IN:
            raise
    # Masquerading is what reaches beyond this host; plugins do it by iptables.
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
    """The host's, without those that only the host can reach."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            words = [line.split() for line in file]
    except OSError:
        return ()
    found = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    return tuple(server for server in found if not server.startswith("127.") and server != "::1")
