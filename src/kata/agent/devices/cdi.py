"""Container Device Interface: what devices of the guest that are asked for by name change in a container's spec.

A container asks by annotation, `cdi.k8s.io/<anything>: vendor.com/class=name,…`; the guest image, or a driver in it,
says in a file what the device is made of. Reference: CNCF's container-device-interface, SPEC.md, 0.3.0 to 0.7.0.

Files are read as JSON: the guest has nothing that reads YAML.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kata.errors import FailedPrecondition, InvalidArgument

#: Where files are; a device in a later directory counts before one in an earlier.
DIRECTORIES = ("/etc/cdi", "/run/cdi")

_PREFIX = "cdi.k8s.io/"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,127}/[A-Za-z][A-Za-z0-9._-]{0,127}=[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_FILE_MAX, _FILES_MAX = 1 << 20, 100
_HOOKS = frozenset(("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"))


def wanted(annotations: Mapping[str, str]) -> list[str]:
    """The names of the devices that a container asks for, each once.

    Raises:
        InvalidArgument: one is no name.
    """
    names: dict[str, None] = {}
    for key, value in sorted(annotations.items()):
        if key.startswith(_PREFIX):
            for name in value.split(","):
                if not _NAME.fullmatch(name):
                    raise InvalidArgument(f"annotation {key}: {name[:100]!r} is no CDI device, vendor/class=name")
                names[name] = None
    return list(names)


def find(names: Sequence[str], directories: Iterable[str] = DIRECTORIES) -> list[Mapping[str, Any]] | None:
    """The edits that devices make, in their order; None as long as one is in no file, or one of its nodes is not there.

    Raises:
        FailedPrecondition: a file is broken.
    """
    devices: dict[str, tuple[str, Mapping[str, Any]]] = {}
    common: dict[str, Mapping[str, Any]] = {}
    for path in _files(directories):
        content = _load(path)
        try:
            common[path] = content.get("containerEdits") or {}
            for device in content["devices"]:
                devices[f"{content['kind']}={device['name']}"] = (path, device.get("containerEdits") or {})
        except (KeyError, TypeError, AttributeError) as error:
            raise FailedPrecondition(f"{path} is no CDI specification: {error!r}") from None
    edits: list[Mapping[str, Any]] = []
    seen: set[str] = set()
    for name in names:
        if name not in devices:
            return None
        path, own = devices[name]
        # What a file says of all its devices is done once.
        edits += [own] if path in seen else [common[path], own]
        seen.add(path)
    nodes = [node for edit in edits for node in edit.get("deviceNodes") or ()]
    return edits if all(os.path.exists(node.get("hostPath") or node["path"]) for node in nodes) else None


def _files(directories: Iterable[str]) -> list[str]:
    found: list[str] = []
    for directory in directories:
        try:
            names = sorted(name for name in os.listdir(directory) if name.endswith(".json"))
        except OSError:
            continue
        found += [f"{directory}/{name}" for name in names]
    return found[:_FILES_MAX]


def _load(path: str) -> Mapping[str, Any]:
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(_FILE_MAX))
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"CDI specification {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise FailedPrecondition(f"{path} is no CDI specification: it is no object")
    return content


def apply(spec: Mapping[str, Any], edits: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The spec with edits made; the argument is not changed.

    Raises:
        FailedPrecondition: an edit is none, or names a node that is no device.
    """
    process: dict[str, Any] = {**(spec.get("process") or {})}
    user: dict[str, Any] = {**(process.get("user") or {})}
    linux: dict[str, Any] = {**(spec.get("linux") or {})}
    resources: dict[str, Any] = {**(linux.get("resources") or {})}
    env = dict(entry.partition("=")[::2] for entry in process.get("env") or ())
    devices, rules = [*(linux.get("devices") or ())], [*(resources.get("devices") or ())]
    mounts: list[Any] = [*(spec.get("mounts") or ())]
    hooks: dict[str, list[Any]] = {kind: [*of] for kind, of in (spec.get("hooks") or {}).items()}
    groups = [*(user.get("additionalGids") or ())]
    try:
        for edit in edits:
            env.update(entry.partition("=")[::2] for entry in edit.get("env") or ())
            for node in edit.get("deviceNodes") or ():
                device, access = _device(node)
                devices = [one for one in devices if one.get("path") != device["path"]] + [device]
                number = {key: device[key] for key in ("type", "major", "minor")}
                rules.append({"allow": True, **number, "access": access})
            mounts += [_mount(mount) for mount in edit.get("mounts") or ()]
            for hook in edit.get("hooks") or ():
                if hook["hookName"] not in _HOOKS:
                    raise FailedPrecondition(f"CDI: there are no hooks of the kind {hook['hookName']!r}")
                kept = {key: value for key, value in hook.items() if key != "hookName"}
                hooks.setdefault(hook["hookName"], []).append(kept)
            groups += [gid for gid in edit.get("additionalGids") or () if gid not in groups]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FailedPrecondition(f"CDI: this is no edit of a container: {error!r}") from None
    process["env"] = [f"{name}={value}" for name, value in env.items()]
    if groups:
        process["user"] = {**user, "additionalGids": groups}
    linux |= {"devices": devices, "resources": {**resources, "devices": rules}}
    return {**spec, "process": process, "linux": linux, "mounts": mounts, **({"hooks": hooks} if hooks else {})}


def _device(node: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A node of the container's, numbered as the guest's, and how it may be used."""
    where = node.get("hostPath") or node["path"]
    try:
        info = os.stat(where)
    except OSError as error:
        raise FailedPrecondition(f"CDI: device {where}: {error.strerror}") from error
    if not (stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)):
        raise FailedPrecondition(f"CDI: {where} is no device")
    device = {
        "path": node["path"],
        "type": "b" if stat.S_ISBLK(info.st_mode) else "c",
        "major": os.major(info.st_rdev),
        "minor": os.minor(info.st_rdev),
        "fileMode": node.get("fileMode", stat.S_IMODE(info.st_mode)),
        "uid": node.get("uid", info.st_uid),
        "gid": node.get("gid", info.st_gid),
    }
    return device, str(node.get("permissions") or "rwm")


def _mount(mount: Mapping[str, Any]) -> dict[str, Any]:
    options = list(mount.get("options") or ["rbind", "ro"])
    kind = mount.get("type") or "bind"
    return {"destination": mount["containerPath"], "source": mount["hostPath"], "type": kind, "options": options}
