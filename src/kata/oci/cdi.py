"""Container Device Interface: edits of a container's spec for devices that are requested by name.

A container requests them by annotation, `cdi.k8s.io/<anything>: vendor.com/class=name,…`; a specification, a JSON or
YAML file, has the edits. The host's specifications count first, if its administrator enables them; other devices are
the guest's: of its image, or of a driver in it. Source: CNCF's container-device-interface, SPEC.md, 0.3.0 to 0.7.0.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kata.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from kata.oci.spec import Spec

#: Directories of the guest's specifications; a device in a later one overrides one in an earlier.
DIRECTORIES = ("/etc/cdi", "/run/cdi")

_PREFIX = "cdi.k8s.io/"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,127}/[A-Za-z][A-Za-z0-9._-]{0,127}=[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_SUFFIXES = (".json", ".yaml", ".yml")
_MAX_FILE_SIZE, _MAX_FILES = 1 << 20, 100
#: What the lists of a device's edits hold.
_LISTS = {"env": str, "deviceNodes": dict, "mounts": dict, "hooks": dict, "additionalGids": int}
_HOOKS = frozenset(("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"))


def wanted(annotations: Mapping[str, str]) -> list[str]:
    """The names of the devices that a container requests, each once.

    Raises:
        InvalidArgument: a name is invalid.
    """
    names: dict[str, None] = {}
    for key, value in sorted(annotations.items()):
        if key.startswith(_PREFIX):
            for name in value.split(","):
                if not _NAME.fullmatch(name):
                    raise InvalidArgument(
                        f"annotation {key}: invalid CDI device name {name[:100]!r} (vendor/class=name)"
                    )
                names[name] = None
    return list(names)


def by_host(spec: Spec, directories: Iterable[str]) -> Spec:
    """The spec with the devices of the host's specifications; the names of the others stay, for the guest.

    Args:
        spec: the container's, which is not changed.
        directories: of specifications on the host.

    Raises:
        InvalidArgument: a name is invalid.
        FailedPrecondition: a specification is invalid, or names something that is not a device here.
    """
    annotations: Mapping[str, str] = spec.get("annotations") or {}
    names = wanted(annotations)
    if not names:
        return spec
    edits, missing = _resolve(names, directories)
    edited: Any = apply(spec, edits)
    edited["annotations"] = {
        key: ",".join(name for name in value.split(",") if name in missing) if key.startswith(_PREFIX) else value
        for key, value in annotations.items()
        if not key.startswith(_PREFIX) or not missing.isdisjoint(value.split(","))
    }
    return edited  # type: ignore[no-any-return]


def find(names: Sequence[str], directories: Iterable[str] = DIRECTORIES) -> list[Mapping[str, Any]] | None:
    """The edits of devices, in their order.

    Args:
        names: of the devices.
        directories: of specifications.

    Returns:
        None as long as a device is in no specification, or one of its nodes does not exist.

    Raises:
        FailedPrecondition: a specification is invalid.
    """
    edits, missing = _resolve(names, directories)
    nodes = [node for edit in edits for node in edit.get("deviceNodes") or ()]
    there = all(os.path.exists(node.get("hostPath") or node["path"]) for node in nodes)
    return edits if there and not missing else None


def _resolve(names: Sequence[str], directories: Iterable[str]) -> tuple[list[Mapping[str, Any]], set[str]]:
    """The edits of the devices of these names, and the names that are in no specification.

    Raises:
        FailedPrecondition: a specification cannot be read, or is invalid.
    """
    devices: dict[str, tuple[str, Mapping[str, Any]]] = {}
    common: dict[str, Mapping[str, Any]] = {}
    for path in _files(directories):
        content = _load(path)
        try:
            kind, common[path] = _text(content["kind"]), _checked(content.get("containerEdits"))
            for device in content["devices"]:
                devices[f"{kind}={_text(device['name'])}"] = (path, _checked(device.get("containerEdits")))
        except (KeyError, TypeError, AttributeError) as error:
            raise FailedPrecondition(f"{path} is not a valid CDI specification: {error!r}") from None
    edits: list[Mapping[str, Any]] = []
    seen: set[str] = set()
    missing: set[str] = set()
    for name in names:
        if name not in devices:
            missing.add(name)
            continue
        path, own = devices[name]
        # The common edits of a specification are made once.
        edits += [own] if path in seen else [common[path], own]
        seen.add(path)
    return edits, missing


def _checked(edits: Any) -> Mapping[str, Any]:
    """The edits of a specification, whose lists are such, and whose nodes have paths.

    Raises:
        TypeError: they are not; also KeyError, AttributeError.
    """
    edits = edits or {}
    for key, kind in _LISTS.items():
        found = edits.get(key) or []
        if not isinstance(found, list) or not all(isinstance(one, kind) for one in found):
            raise TypeError(f"{key} is not a list of such")
    for node in edits.get("deviceNodes") or ():
        _text(node["path"])
        _text(node.get("hostPath") or "")
    return edits  # type: ignore[no-any-return]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name or a path is not text")
    return value


def _files(directories: Iterable[str]) -> list[str]:
    found: list[str] = []
    for directory in directories:
        try:
            names = sorted(name for name in os.listdir(directory) if name.endswith(_SUFFIXES))
        except OSError:
            continue
        found += [f"{directory}/{name}" for name in names]
    return found[:_MAX_FILES]


def _load(path: str) -> Mapping[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_FILE_SIZE)
        content = json.loads(text) if path.endswith(".json") else _from_yaml(text)
    except (OSError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())  # of YAML's it has several lines
        raise FailedPrecondition(f"cannot read CDI specification {path}: {said}") from error
    if not isinstance(content, dict):
        raise FailedPrecondition(f"{path} is not a valid CDI specification: not an object")
    return content


def _from_yaml(text: bytes) -> Any:
    # Imported with the first such file: few hosts have any.
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def apply(spec: Mapping[str, Any], edits: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The spec with edits applied; the argument is not changed.

    Raises:
        FailedPrecondition: an edit is invalid, or names a node that is not a device.
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
                    raise FailedPrecondition(f"CDI: unknown kind of hook {hook['hookName']!r}")
                kept = {key: value for key, value in hook.items() if key != "hookName"}
                hooks.setdefault(hook["hookName"], []).append(kept)
            groups += [gid for gid in edit.get("additionalGids") or () if gid not in groups]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FailedPrecondition(f"CDI: invalid container edits: {error!r}") from None
    process["env"] = [f"{name}={value}" for name, value in env.items()]
    if groups:
        process["user"] = {**user, "additionalGids": groups}
    linux |= {"devices": devices, "resources": {**resources, "devices": rules}}
    return {**spec, "process": process, "linux": linux, "mounts": mounts, **({"hooks": hooks} if hooks else {})}


def _device(node: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """A device node for the spec, with the numbers that it has here, and its permissions.

    Raises:
        FailedPrecondition: there is no device at the path.
    """
    where = node.get("hostPath") or node["path"]
    shown = where if where.isprintable() else ascii(where)
    try:
        info = os.stat(where)
    except OSError as error:
        raise FailedPrecondition(f"CDI: device {shown}: {error.strerror}") from error
    if not (stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)):
        raise FailedPrecondition(f"CDI: {shown} is not a device")
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
