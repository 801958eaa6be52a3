"""CNI: a network made by its plugins, for a sandbox that nobody else has given one to.

Reference: the CNI specification 1.0.0, sections 1 (configuration), 2 (execution protocol) and 3 (what runs them).

What was made is written to a file first, so that whoever cleans up can have it removed (`delete`).
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

#: Where configurations are, and the directories of plugins: Debian's among them.
CONFIGURATIONS = Path("/etc/cni/net.d")
PLUGINS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")

_SUFFIXES = (".conflist", ".conf", ".json")
_FILE_MAX = 1 << 20
_TIMEOUT_S = 20.0
_INTERFACE = "eth0"


@dataclass(frozen=True)
class ConfList:
    """A network's configuration.

    Attributes:
        plugins: their configurations, in the order in which they add.
    """

    name: str
    version: str
    plugins: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Added:
    """What the plugins say of a network they have made.

    Attributes:
        addresses: without the length of the prefix, in their order.
        nameservers: none if the plugins leave that to others.
    """

    addresses: tuple[str, ...]
    nameservers: tuple[str, ...]


def find(name: str, directory: Path = CONFIGURATIONS) -> ConfList:
    """The configuration of a network.

    Raises:
        NotFound: there is none of that name; the hint has those that there are.
    """
    found = {one.name: one for one in _read_all(directory)}
    if name not in found:
        there = f"those of {directory}: {', '.join(found)}" if found else f"{directory} has none"
        raise NotFound(f"there is no network {name}", hint=there)
    return found[name]


def _read_all(directory: Path) -> Iterator[ConfList]:
    for path in sorted(directory.iterdir(), reverse=True) if directory.is_dir() else ():
        if path.suffix in _SUFFIXES:
            try:
                with path.open("rb") as file:
                    yield parse(file.read(_FILE_MAX))
            except (OSError, InvalidArgument):
                continue  # somebody else's, and broken


def parse(text: str | bytes) -> ConfList:
    """A list of plugins, or a single one's configuration.

    Raises:
        InvalidArgument: it is neither.
    """
    try:
        content = json.loads(text)
        name, version = str(content["name"]), str(content.get("cniVersion") or "0.2.0")
        plugins = content.get("plugins", [content])
        if not plugins or not all(isinstance(one["type"], str) and "/" not in one["type"] for one in plugins):
            raise ValueError("no plugin, or one without a type")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArgument(f"CNI: this is no configuration of a network: {error}") from None
    return ConfList(name, version, tuple(plugins))


def add(network: ConfList, container_id: str, netns: str, record: Path, plugins: tuple[str, ...] = PLUGINS) -> Added:
    """Have a network made in a namespace.

    Args:
        record: the file for `delete`, written before anything is made.

    Raises:
        FailedPrecondition: a plugin is missing, fails or hangs. What was made then stays until `delete`.
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
    """Have what `add` has made removed, as far as it came. Idempotent; the namespace may be gone.

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
    """`delete` by the ledger's entry, the path of the record. Raises OSError instead."""
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
        raise FailedPrecondition(f"{what}: there is no such plugin in {', '.join(directories)}")
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
        raise FailedPrecondition(f"{what}: no end within {_TIMEOUT_S:.0f} s") from None
    except OSError as error:
        raise FailedPrecondition(f"{what}: {error.strerror}") from error
    if done.returncode:
        raise FailedPrecondition(f"{what}: {_reason(done.stdout) or done.stderr.strip()[-300:] or done.returncode}")
    try:
        return dict(json.loads(done.stdout)) if done.stdout.strip() else {}
    except ValueError as error:
        raise FailedPrecondition(f"{what}: its answer is no JSON: {error}") from None


def _reason(said: str) -> str:
    """What a plugin says about its failure."""
    try:
        content = json.loads(said)
        return ": ".join(str(content[key]) for key in ("msg", "details") if content.get(key))
    except (ValueError, TypeError, AttributeError):
        return said.strip()[-300:]
