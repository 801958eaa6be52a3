"""Direct volumes: volumes on a disk that the guest mounts, not the host.

A storage driver (CSI) writes a record of the volume instead of mounting it; a container that binds the volume's path
gets the disk, mounted in the guest. The records are Kata's, so that its drivers work unchanged: the file

    /run/kata-containers/shared/direct-volumes/<base64url of the volume's path>/mountInfo.json

and beside it, for each sandbox that uses the volume, a file with the sandbox's id as its name.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kata.errors import FailedPrecondition, InvalidArgument, NotFound
from kata.linux import atomic_file
from kata.runtime.ledger.names import validate_name
from kata.runtime.storage.disk_mount import DISK_TYPES, GUEST_STORAGE, DiskMount

ROOT = "/run/kata-containers/shared/direct-volumes"

_RECORD = "mountInfo.json"
_MAX_RECORD = 64 << 10
_MAX_NAME = 255
_TYPES = ("block", "directvol")
_POLICIES = {"": False, "Always": False, "OnRootMismatch": True}
_METADATA = frozenset({"fsGroup", "fsGroupChangePolicy"})
_MAX_GROUP = (1 << 32) - 2


@dataclass(frozen=True)
class DirectVolume:
    """A record.

    Attributes:
        device: block device or image file on the host.
        mount: how the guest mounts it, at one place for all containers of a pod.
    """

    device: str
    mount: DiskMount


def parse(volume_path: str, text: str | bytes) -> DirectVolume:
    """Parse a record: volume-type, device, fstype, options, and in metadata fsGroup and fsGroupChangePolicy.

    Args:
        volume_path: of the volume on the host.
        text: JSON.

    Raises:
        InvalidArgument: it is malformed, or has what is not supported, such as encryption.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"direct volume: mount info is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise InvalidArgument("direct volume: mount info is not a JSON object")
    kind, device, fstype = (str(record.get(name) or "") for name in ("volume-type", "device", "fstype"))
    if kind not in _TYPES:
        raise InvalidArgument(f"direct volume: volume-type {kind!r} is not supported", hint='use "block"')
    if not device.startswith("/") or "\0" in device:
        raise InvalidArgument(f"direct volume: device {device!r} is not an absolute path")
    if fstype not in DISK_TYPES:
        raise InvalidArgument(f"direct volume: file system {fstype!r} is not supported by the guest")
    options = record.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise InvalidArgument("direct volume: options are not a list of strings")
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InvalidArgument("direct volume: metadata is not a JSON object")
    if unknown := sorted(map(str, set(metadata) - _METADATA)):
        # Ignored metadata may be the encryption that somebody relies on.
        names = ", ".join(name if name.isprintable() else ascii(name) for name in unknown)
        raise InvalidArgument(f"direct volume: metadata {names[:400]} is not supported")
    return DirectVolume(device, DiskMount(guest_point(volume_path), fstype, tuple(options), *_group(metadata)))


def _group(metadata: Mapping[str, Any]) -> tuple[int | None, bool]:
    policy = str(metadata.get("fsGroupChangePolicy") or "")
    if policy not in _POLICIES:
        raise InvalidArgument(f"direct volume: invalid fsGroupChangePolicy {policy!r} (Always or OnRootMismatch)")
    text = str(metadata.get("fsGroup") or "")
    if not text:
        return None, False
    if not text.isdecimal() or len(text) > len(str(_MAX_GROUP)) or int(text) > _MAX_GROUP:
        raise InvalidArgument(f"direct volume: invalid fsGroup {text[:40]!r}")
    return int(text), _POLICIES[policy]


def name_of(volume_path: str) -> str:
    """The name of a volume: its path in base64url.

    Raises:
        InvalidArgument: the path is not absolute, or too long for a file name.
    """
    if not volume_path.startswith("/") or "\0" in volume_path:
        raise InvalidArgument(f"volume path {volume_path!r} is not an absolute path")
    name = base64.urlsafe_b64encode(os.fsencode(os.path.normpath(volume_path))).decode()
    if len(name) > _MAX_NAME:
        raise InvalidArgument(f"volume path {volume_path!r} is longer than {_MAX_NAME * 3 // 4} bytes")
    return name


def guest_point(volume_path: str) -> str:
    """Where the guest mounts a volume.

    Raises:
        InvalidArgument: as `name_of`.
    """
    return f"{GUEST_STORAGE}/{name_of(volume_path)}"


def add(volume_path: str, record: str, root: str = ROOT) -> None:
    """Write a volume's record, or replace it.

    Args:
        volume_path: of the volume on the host.
        record: JSON, see `parse`.
        root: the directory of records.

    Raises:
        InvalidArgument: as `parse` and `name_of`.
        FailedPrecondition: it cannot be written.
    """
    parse(volume_path, record)
    directory = os.path.join(root, name_of(volume_path))
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        atomic_file.write(os.path.join(directory, _RECORD), record)
    except OSError as error:
        raise FailedPrecondition(f"cannot write the record of volume {volume_path}: {error.strerror}") from error


def remove(volume_path: str, root: str = ROOT) -> None:
    """Remove a volume's record. Sandboxes that have the volume keep it.

    Raises:
        NotFound: there is no record.
        InvalidArgument: as `name_of`.
    """
    # Imported here: a shim, which only reads records, does not need it.
    import shutil

    try:
        shutil.rmtree(os.path.join(root, name_of(volume_path)))
    except FileNotFoundError:
        raise NotFound(f"no direct volume is recorded for {volume_path}") from None


def find(volume_path: str, root: str = ROOT) -> DirectVolume | None:
    """Read the record of the volume at a path; None if there is none.

    Raises:
        InvalidArgument: the record cannot be read or is malformed.
    """
    try:
        path = os.path.join(root, name_of(volume_path), _RECORD)
    except InvalidArgument:
        return None  # no record can have this name
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_RECORD + 1)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from error
    if len(content) > _MAX_RECORD:
        raise InvalidArgument(f"{path} is larger than {_MAX_RECORD} bytes")
    return parse(volume_path, content)


def user_file(volume_path: str, sandbox: str, root: str = ROOT) -> str:
    """The file that marks a volume as used by a sandbox, by the name of its state directory.

    Raises:
        InvalidArgument: as `name_of` and `validate_name`.
    """
    return os.path.join(root, name_of(volume_path), validate_name(sandbox))


def users(volume_path: str, root: str = ROOT) -> list[str]:
    """Names of the state directories of sandboxes that are marked as users of the volume; some may have ended.

    Raises:
        NotFound: there is no record.
        InvalidArgument: as `name_of`.
    """
    directory = os.path.join(root, name_of(volume_path))
    try:
        entries = [entry for entry in os.scandir(directory) if entry.name != _RECORD]
    except OSError:
        raise NotFound(f"no direct volume is recorded for {volume_path}") from None
    names = sorted(entry.name for entry in entries if stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode))
    return [name for name in names if not name.startswith(".")]  # a record that is just being written
