"""CNI: networks for sandboxes that no container engine has given one to, set up by plugins.

Reference: the CNI specification 1.0.0, sections 1 (configuration), 2 (execution protocol) and 3 (what runs them).

A record of the network is written first, so that it can be removed even after a crash (`delete`).
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound
from kata.linux import atomic_file

#: The directory of configurations, and those of plugins, including Debian's.
CONFIGURATIONS = Path("/etc/cni/net.d")
PLUGINS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")

_SUFFIXES = (".conflist", ".conf", ".json")
_MAX_FILE = 1 << 20
_TIMEOUT_S = 20.0
_INTERFACE = "eth0"


@dataclass(frozen=True)
class ConfList:
    """A network's configuration.

    Attributes:
        name, version: of the network, and of CNI.
        plugins: their configurations, in the order of ADD.
    """

    name: str
    version: str
    plugins: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Added:
    """The result of ADD.

    Attributes:
        addresses: without prefix length, in their order.
        nameservers: empty if the plugins do not configure DNS.
    """

    addresses: tuple[str, ...]
    nameservers: tuple[str, ...]


def find(name: str, directory: Path = CONFIGURATIONS) -> ConfList:
    """Find the configuration of a network.

    Raises:
        NotFound: there is none with this name; the hint lists those that exist.
    """
    found = {one.name: one for one in _read_all(directory)}
    if name not in found:
        there = f"networks in {directory}: {', '.join(found)}" if found else f"{directory} has no networks"
        raise NotFound(f"network {name} does not exist", hint=there)
    return found[name]


def _read_all(directory: Path) -> Iterator[ConfList]:
    for path in sorted(directory.iterdir(), reverse=True) if directory.is_dir() else ():
        if path.suffix in _SUFFIXES:
            try:
                with path.open("rb") as file:
                    yield parse(file.read(_MAX_FILE))
            except (OSError, InvalidArgument):
                continue  # malformed, and maybe not for us


def parse(text: str | bytes) -> ConfList:
    """Parse a configuration: a list of plugins, or a single plugin.

    Raises:
        InvalidArgument: it is malformed.
    """
    try:
        content = json.loads(text)
        name, version = str(content["name"]), str(content.get("cniVersion") or "0.2.0")
        plugins = content.get("plugins", [content])
        if plugins and all(isinstance(one["type"], str) and "/" not in one["type"] for one in plugins):
            return ConfList(name, version, tuple(plugins))
        problem = "a plugin or its type is missing"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = str(error)
    raise InvalidArgument(f"CNI: malformed network configuration: {problem}")


def add(network: ConfList, container_id: str, netns: str, record: Path, plugins: tuple[str, ...] = PLUGINS) -> Added:
    """Set up a network in a namespace (ADD).

    Args:
        network: its configuration.
        container_id: the sandbox's.
        netns: path of the network namespace.
        record: the file for `delete`, written first.
        plugins: directories of plugins.

    Raises:
        FailedPrecondition: a plugin is missing, fails or hangs. The rest stays until `delete`.
    """
    written = {
        "network": {"name": network.name, "cniVersion": network.version, "plugins": network.plugins},
        "container": container_id,
        "netns": netns,
        "directories": plugins,
    }
    result: dict[str, Any] | None = None
    _write(record, written)
    for plugin in network.plugins:
        result = _run("ADD", network, plugin, container_id, netns, result, plugins)
        _write(record, {**written, "result": result})
    addresses = tuple(str(one["address"]).partition("/")[0] for one in (result or {}).get("ips") or ())
    nameservers = tuple(map(str, ((result or {}).get("dns") or {}).get("nameservers") or ()))
    return Added(addresses, nameservers)


def delete(record: Path) -> None:
    """Remove what `add` has set up, complete or not (DEL). Idempotent; the namespace may be gone.

    Raises:
        FailedPrecondition: a plugin is missing, fails or hangs.
    """
    try:
        written = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    network = parse(json.dumps(written["network"]))
    netns = str(written["netns"])
    for plugin in reversed(network.plugins):
        _run(
            "DEL",
            network,
            plugin,
            str(written["container"]),
            netns if os.path.exists(netns) else "",
            written.get("result"),
            tuple(written["directories"]),
        )
    record.unlink()


def release_network(record: str) -> None:
    """`delete` by the ledger's entry, the path of the record.

    Raises:
        OSError: EIO with the plugin's message: the ledger catches only OSError.
    """
    try:
        delete(Path(record))
    except KataError as error:
        raise OSError(errno.EIO, error.message) from error


def _write(record: Path, content: Mapping[str, Any]) -> None:
    try:
        atomic_file.write(record, json.dumps(content))
    except OSError as error:
        raise FailedPrecondition(f"cannot write {record}: {error.strerror}") from error


def _run(
    command: str,
    network: ConfList,
    plugin: Mapping[str, Any],
    container_id: str,
    netns: str,
    previous: Mapping[str, Any] | None,
    directories: tuple[str, ...],
) -> dict[str, Any]:
    kind = str(plugin["type"])
    what = f"CNI plugin {kind}, {command} of {container_id} to network {network.name}"
    program = next((path for one in directories if os.access(path := os.path.join(one, kind), os.X_OK)), None)
    if program is None:
        raise FailedPrecondition(f"{what}: plugin not found in {', '.join(directories)}")
    configuration = {**plugin, "name": network.name, "cniVersion": network.version}
    if previous is not None:
        configuration["prevResult"] = previous
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container_id,
        "CNI_NETNS": netns,
        "CNI_IFNAME": _INTERFACE,
        "CNI_PATH": ":".join(directories),
        "PATH": os.environ.get("PATH", os.defpath),
    }
    try:
        done = subprocess.run(
            [program],
            env=environment,
            input=json.dumps(configuration),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise FailedPrecondition(f"{what}: did not end within {_TIMEOUT_S:.0f} s") from None
    except OSError as error:
        raise FailedPrecondition(f"{what}: {error.strerror}") from error
    if done.returncode:
        raise FailedPrecondition(f"{what}: {_reason(done.stdout) or done.stderr.strip()[-300:] or done.returncode}")
    try:
        return result(done.stdout)
    except ValueError as error:
        raise FailedPrecondition(f"{what}: its answer is not JSON: {error}") from None


def result(said: str) -> dict[str, Any]:
    """The result that a plugin reports, which may be nothing.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        found = json.loads(said) if said.strip() else {}
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    return found


def _reason(said: str) -> str:
    """The error that a plugin reports."""
    try:
        content = result(said)
    except ValueError:
        return said.strip()[-300:]
    return ": ".join(str(content[key]) for key in ("msg", "details") if content.get(key))
