"""Direct volumes: a volume on a disk of which the host mounts nothing, because the guest does.

A storage driver (CSI) leaves a record of the volume instead of a mount; a container that binds the volume's path gets
the disk, mounted in the guest. Records are Kata's, so its drivers work unchanged: the file

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
from kata.oci.ids import validate_id
from kata.runtime.storage.disk_mount import DISK_TYPES, GUEST_STORAGE, DiskMount

ROOT = "/run/kata-containers/shared/direct-volumes"

_RECORD = "mountInfo.json"
_RECORD_MAX = 64 << 10
_NAME_MAX = 255
_TYPES = ("block", "directvol")
_POLICIES = {"": False, "Always": False, "OnRootMismatch": True}
_METADATA = frozenset({"fsGroup", "fsGroupChangePolicy"})
_GROUP_MAX = (1 << 32) - 2


@dataclass(frozen=True)
class DirectVolume:
    """What a record says.

    Attributes:
        device: block device or image file on the host.
        mount: in the guest, at one place for all containers of a pod.
    """

    device: str
    mount: DiskMount


def parse(volume_path: str, text: str | bytes) -> DirectVolume:
    """A volume's record: volume-type, device, fstype, options, and in metadata fsGroup and fsGroupChangePolicy.

    Raises:
        InvalidArgument: it is none, or asks for what there is not, such as encryption.
    """
    try:
        record = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"direct volume: mount info is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise InvalidArgument("direct volume: mount info is no JSON object")
    kind, device, fstype = (str(record.get(name) or "") for name in ("volume-type", "device", "fstype"))
    if kind not in _TYPES:
        raise InvalidArgument(f"direct volume: volume-type {kind!r} is not supported", hint='use "block"')
    if not device.startswith("/") or "\0" in device:
        raise InvalidArgument(f"direct volume: device {device!r} is not an absolute path")
    if fstype not in DISK_TYPES:
        raise InvalidArgument(f"direct volume: the guest does not know the file system {fstype!r}")
    options = record.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise InvalidArgument("direct volume: options are no list of strings")
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InvalidArgument("direct volume: metadata is no JSON object")
    if unknown := sorted(map(str, set(metadata) - _METADATA)):
        # What is left out silently may be the encryption that somebody relies on.
        raise InvalidArgument(f"direct volume: metadata {', '.join(unknown)} is not supported")
    return DirectVolume(device, DiskMount(guest_point(volume_path), fstype, tuple(options), *_group(metadata)))


def _group(metadata: Mapping[str, Any]) -> tuple[int | None, bool]:
    policy = str(metadata.get("fsGroupChangePolicy") or "")
    if policy not in _POLICIES:
        raise InvalidArgument(f"direct volume: fsGroupChangePolicy {policy!r} is neither Always nor OnRootMismatch")
    text = str(metadata.get("fsGroup") or "")
    if not text:
        return None, False
    if not text.isdecimal() or int(text) > _GROUP_MAX:
        raise InvalidArgument(f"direct volume: fsGroup {text!r} is no group id")
    return int(text), _POLICIES[policy]


def name_of(volume_path: str) -> str:
    """What a volume is called: its path in base64url.

    Raises:
        InvalidArgument: the path is not absolute, or so long that no file can have the name.
    """
    if not volume_path.startswith("/") or "\0" in volume_path:
        raise InvalidArgument(f"volume path {volume_path!r} is not an absolute path")
    name = base64.urlsafe_b64encode(os.fsencode(os.path.normpath(volume_path))).decode()
    if len(name) > _NAME_MAX:
        raise InvalidArgument(f"volume path {volume_path!r} has more than {_NAME_MAX * 3 // 4} bytes")
    return name


def guest_point(volume_path: str) -> str:
    """Where the guest mounts a volume. Raises as `name_of`."""
    return f"{GUEST_STORAGE}/{name_of(volume_path)}"


def add(volume_path: str, record: str, root: str = ROOT) -> None:
    """Write a volume's record, in the place of one that is there.

    Raises:
        InvalidArgument: as of `parse` and `name_of`.
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
        NotFound: there is none.
        InvalidArgument: as of `name_of`.
    """
    # Imported here: a shim, which reads records, does without what it brings along.
    import shutil

    try:
        shutil.rmtree(os.path.join(root, name_of(volume_path)))
    except FileNotFoundError:
        raise NotFound(f"no direct volume is recorded for {volume_path}") from None


def find(volume_path: str, root: str = ROOT) -> DirectVolume | None:
    """The volume that is recorded for a path; None if none is.

    Raises:
        InvalidArgument: the record is broken.
    """
    try:
        path = os.path.join(root, name_of(volume_path), _RECORD)
    except InvalidArgument:
        return None  # no record can have that name
    try:
        with open(path, "rb") as file:
            content = file.read(_RECORD_MAX + 1)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from error
    if len(content) > _RECORD_MAX:
        raise InvalidArgument(f"{path} has more than {_RECORD_MAX} bytes")
    return parse(volume_path, content)


def user_file(volume_path: str, sandbox_id: str, root: str = ROOT) -> str:
    """The file that says that a sandbox has the volume."""
    return os.path.join(root, name_of(volume_path), validate_id(sandbox_id))


def users(volume_path: str, root: str = ROOT) -> list[str]:
    """Ids of the sandboxes that said they have the volume; some may have ended.

    Raises:
        NotFound: no volume is recorded for the path.
        InvalidArgument: as of `name_of`.
    """
    directory = os.path.join(root, name_of(volume_path))
    try:
        entries = [entry for entry in os.scandir(directory) if entry.name != _RECORD]
    except OSError:
        raise NotFound(f"no direct volume is recorded for {volume_path}") from None
    names = sorted(entry.name for entry in entries if stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode))
    return [name for name in names if not name.startswith(".")]  # a record that is just being written
