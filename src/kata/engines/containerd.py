"""What containerd's CRI plugin has to be told. `ctr` and Docker need nothing of it: the shim's name is enough for them.

Where it is written depends on what containerd would read:

- containerd 2 merges imported files key by key, so a drop-in does, if the configuration imports a directory of them.
- containerd 1.x has the settings of a plugin in an imported file replace all of that plugin's: they go into the
  configuration itself, at its end.
- containerd 1.x has its own runtime, runc, only as long as the configuration names none. Without it the plugin would
  not start, so where ours is the first one, runc is named as well.
- A drop-in has the version of the configuration that imports it: of another one containerd 2 would not migrate either.

References: containerd, docs/man/containerd-config.toml.5.md; issue 5837, pull requests 9982, 12323 and 12891.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kata.engines.change import Change, merged, new_file, parsed, table
from kata.errors import FailedPrecondition, InvalidArgument

CONFIG = Path("/etc/containerd/config.toml")
HANDLER = "kata"
RUNTIME_TYPE = "io.containerd.kata.v2"
DROP_IN = "kata.toml"

#: The plugin that has the runtimes, by the version of the configuration.
_PLUGINS = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
#: The first containerd that reads a version of the configuration.
_READ_SINCE = {2: (1, 3), 3: (2, 0)}
#: From this one on, a containerd without a configuration imports drop-ins.
_IMPORTS_BY_ITSELF = (2, 2)
_DROP_INS = "/etc/containerd/conf.d/*.toml"
_VERSION = re.compile(r"^containerd \S+ v?(\d+)\.(\d+)", re.MULTILINE)

#: What containerd 1.x has by default.
_RUNC = """\
[plugins."{plugin}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""
_BLOCK = """\
# Written by `kata setup containerd`; `kata unset containerd` takes it out again.
[plugins."{plugin}".containerd.runtimes.{handler}]
  runtime_type = "{runtime_type}"
  privileged_without_host_devices = true
  pod_annotations = ["io.katacontainers.*"]
  container_annotations = ["io.katacontainers.*"]
"""


@dataclass(frozen=True)
class Containerd:
    """What was found of containerd.

    Attributes:
        version: of the program, e.g. (1, 6).
        path: of its configuration.
        config: the configuration's content; None if there is none.
        imported: content of the files that it imports, but for our drop-in, by path.
    """

    version: tuple[int, int]
    path: Path = CONFIG
    config: bytes | None = None
    imported: Mapping[Path, bytes] = field(default_factory=dict)


def parse_version(printed: str) -> tuple[int, int]:
    """What `containerd --version` says.

    Raises:
        InvalidArgument: it is not understood.
    """
    if (found := _VERSION.search(printed)) is None:
        raise InvalidArgument(f"cannot understand containerd's version: {printed.strip()[:80]!r}")
    return int(found[1]), int(found[2])


def plan(found: Containerd) -> list[Change]:
    """What to change; nothing if somebody has done it by hand already.

    Raises:
        InvalidArgument: the configuration is not understood.
        FailedPrecondition: it has another runtime of this name, or is of a version that cannot be added to.
    """
    before = found.config if found.config is not None else b""
    document = parsed(found.path, before)
    number = _version_of(document, found)
    plugin = _PLUGINS[number]
    for path, content in {found.path: before, **found.imported}.items():
        if handler := _handler(parsed(path, content)):
            if handler.get("runtime_type") == RUNTIME_TYPE:
                return []
            raise FailedPrecondition(
                f"{path} has a runtime '{HANDLER}' already, of type {str(handler.get('runtime_type'))[:80]!r}",
                hint="another Kata's, perhaps: take it out there first; nothing was changed",
            )
        if path != found.path and found.version < (2, 0) and table(parsed(path, content), "plugins", plugin):
            raise FailedPrecondition(
                f"{path} has settings of {plugin}, which containerd 1.x takes for all there are of it",
                hint=f"move them into {found.path}, or add the runtime there by hand; nothing was changed",
            )
    block = _BLOCK.format(plugin=plugin, handler=HANDLER, runtime_type=RUNTIME_TYPE)
    if found.version >= (2, 0):
        if found.config is None:
            drop_in = _drop_in(found.path.parent / Path(_DROP_INS).relative_to(CONFIG.parent).parent, number, block)
            if found.version >= _IMPORTS_BY_ITSELF:
                return [drop_in]
            pattern = drop_in.path.parent / "*.toml"
            return [new_file(found.path, f'version = {number}\nimports = ["{pattern}"]\n'.encode()), drop_in]
        if directory := _imported_directory(document, found.path):
            return [_drop_in(directory, number, block)]
    elif not table(document, "plugins", plugin, "containerd", "runtimes"):
        block += _RUNC.format(plugin=plugin)
    if found.config is None:
        return [new_file(found.path, f"version = {number}\n\n{block}".encode())]
    gap = "\n" if before.endswith(b"\n") else "\n\n"
    change = Change(found.path, before, len(before), (gap + block).encode())
    _check(change, document, tomllib.loads(block))
    return [change]


def cri_is_disabled(found: Containerd) -> bool:
    """Whether the configuration switches the CRI plugin off, as that of Docker's own package does."""
    disabled = parsed(found.path, found.config or b"").get("disabled_plugins", [])
    return isinstance(disabled, list) and bool({"cri", *_PLUGINS.values()}.intersection(map(str, disabled)))


def patterns(document: Mapping[str, Any], path: Path) -> list[Path]:
    """What a configuration imports: files, or patterns of files; relative ones are beside it."""
    imports = document.get("imports", [])
    names = [one for one in imports if isinstance(one, str)] if isinstance(imports, list) else []
    return [path.parent / name for name in names]


def _version_of(document: Mapping[str, Any], found: Containerd) -> int:
    newest = 3 if found.version >= _READ_SINCE[3] else 2
    number = document.get("version", newest if found.config is None or not document else 1)
    if number not in _PLUGINS:
        known = " and ".join(map(str, _PLUGINS))
        raise FailedPrecondition(
            f"{found.path} is of version {str(number)[:20]}; {known} are understood",
            hint="containerd config migrate prints it in a newer one" if number == 1 else "add the runtime by hand",
        )
    if found.version < _READ_SINCE[number]:
        version = ".".join(map(str, found.version))
        raise FailedPrecondition(
            f"{found.path} is of version {number}, which containerd {version} does not read",
            hint="mend it first; nothing was changed",
        )
    return int(number)


def _handler(document: Mapping[str, Any]) -> dict[str, Any]:
    """The runtime of our name, by the plugin's name of either version."""
    found = (table(document, "plugins", plugin, "containerd", "runtimes", HANDLER) for plugin in _PLUGINS.values())
    return next(filter(None, found), {})


def _imported_directory(document: Mapping[str, Any], path: Path) -> Path | None:
    """A directory of drop-ins that the configuration imports."""
    for pattern in patterns(document, path):
        if "*" in pattern.name and "*" not in str(pattern.parent) and fnmatch.fnmatchcase(DROP_IN, pattern.name):
            return pattern.parent
    return None


def _drop_in(directory: Path, number: int, block: str) -> Change:
    return new_file(directory / DROP_IN, f"version = {number}\n\n{block}".encode())


def _check(change: Change, document: dict[str, Any], block: dict[str, Any]) -> None:
    """See that the file says what was meant: TOML forbids to add to a table that was written on one line.

    Raises:
        FailedPrecondition: it does not.
    """
    try:
        says = tomllib.loads(change.after.decode())
    except tomllib.TOMLDecodeError:
        says = {}
    if says != merged(document, block):
        raise FailedPrecondition(
            f"nothing can be added to {change.path}: it has a table of plugins in braces",
            hint=f"add the runtime by hand: {' '.join(change.inserted.decode().split())}",
        )
