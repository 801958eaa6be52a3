"""The OCI runtime specification: its types, and how a bundle, a process or resources are read.

The TypedDicts cover what a Linux container can ask for (runtime-spec 1.0 to 1.2, config.md and config-linux.md).
Properties that they do not name, as a later 1.x may add, stay in the data untouched, as the specification wants.

Not for: which parts of a spec the guest gets (`kata.oci.edit`), nor how they get there (`kata.oci.convert`).
"""

# No `from __future__ import annotations`: see kata.oci.conform.

import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypedDict, TypeVar, cast

from kata.errors import InvalidArgument, NotFound
from kata.oci.conform import conform

MAX_SPEC = 10 << 20
"""Bytes of JSON at most. Real specs have some 10 KiB, with every seccomp rule written out 100."""

MAX_HOSTNAME = 64
"""Bytes of a host or domain name that the kernel takes (sethostname(2))."""

I32 = Annotated[int, -(2**31), 2**31 - 1]
U32 = Annotated[int, 0, 2**32 - 1]
I64 = Annotated[int, -(2**63), 2**63 - 1]
U64 = Annotated[int, 0, 2**64 - 1]

#: Semantic versioning: every 1.x can be read like 1.0. The patch level is sometimes left out.
_VERSION = re.compile(r"([0-9]+)(?:\.[0-9]+){1,2}(?:[-+][0-9A-Za-z.+-]+)?")

NamespaceType = Literal["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"]


class Box(TypedDict):
    """`consoleSize`, in characters."""

    height: U32
    width: U32


class User(TypedDict, total=False):
    """`process.user`."""

    uid: U32
    gid: U32
    umask: U32
    additionalGids: list[U32]
    username: str


class Capabilities(TypedDict, total=False):
    """`process.capabilities`."""

    bounding: list[str]
    effective: list[str]
    inheritable: list[str]
    permitted: list[str]
    ambient: list[str]


class Rlimit(TypedDict):
    """One of `process.rlimits`."""

    type: str
    hard: U64
    soft: U64


class Process(TypedDict, total=False):
    """`process`, and the process of an exec."""

    terminal: bool
    consoleSize: Box
    user: User
    args: list[str]
    env: list[str]
    cwd: str
    capabilities: Capabilities
    rlimits: list[Rlimit]
    noNewPrivileges: bool
    apparmorProfile: str
    oomScoreAdj: I32
    selinuxLabel: str
    scheduler: dict[str, Any]
    ioPriority: dict[str, Any]
    execCPUAffinity: dict[str, Any]


class Root(TypedDict, total=False):
    """`root`."""

    path: Required[str]
    readonly: bool


class IDMapping(TypedDict):
    """One of `linux.uidMappings` or `gidMappings`."""

    containerID: U32
    hostID: U32
    size: U32


class Mount(TypedDict, total=False):
    """One of `mounts`."""

    destination: Required[str]
    type: str
    source: str
    options: list[str]
    uidMappings: list[IDMapping]
    gidMappings: list[IDMapping]


class Hook(TypedDict, total=False):
    """One hook."""

    path: Required[str]
    args: list[str]
    env: list[str]
    timeout: I64


class Hooks(TypedDict, total=False):
    """`hooks`, by when they run."""

    prestart: list[Hook]
    createRuntime: list[Hook]
    createContainer: list[Hook]
    startContainer: list[Hook]
    poststart: list[Hook]
    poststop: list[Hook]


class Namespace(TypedDict, total=False):
    """One of `linux.namespaces`."""

    type: Required[NamespaceType]
    path: str


class Device(TypedDict, total=False):
    """One of `linux.devices`."""

    path: Required[str]
    type: Required[Literal["c", "b", "u", "p"]]
    major: I64
    minor: I64
    fileMode: U32
    uid: U32
    gid: U32


class DeviceCgroup(TypedDict, total=False):
    """One of `linux.resources.devices`."""

    allow: Required[bool]
    type: Literal["", "a", "b", "c"]
    major: I64
    minor: I64
    access: str


class Memory(TypedDict, total=False):
    """`linux.resources.memory`, in bytes."""

    limit: I64
    reservation: I64
    swap: I64
    kernel: I64
    kernelTCP: I64
    swappiness: U64
    disableOOMKiller: bool
    useHierarchy: bool
    checkBeforeUpdate: bool


class CPU(TypedDict, total=False):
    """`linux.resources.cpu`; times are in microseconds."""

    shares: U64
    quota: I64
    burst: U64
    period: U64
    realtimeRuntime: I64
    realtimePeriod: U64
    cpus: str
    mems: str
    idle: I64


class Pids(TypedDict):
    """`linux.resources.pids`."""

    limit: I64


class WeightDevice(TypedDict, total=False):
    """One of `blockIO.weightDevice`."""

    major: Required[I64]
    minor: Required[I64]
    weight: U32
    leafWeight: U32


class ThrottleDevice(TypedDict):
    """One of `blockIO`'s throttled devices."""

    major: I64
    minor: I64
    rate: U64


class BlockIO(TypedDict, total=False):
    """`linux.resources.blockIO`."""

    weight: U32
    leafWeight: U32
    weightDevice: list[WeightDevice]
    throttleReadBpsDevice: list[ThrottleDevice]
    throttleWriteBpsDevice: list[ThrottleDevice]
    throttleReadIOPSDevice: list[ThrottleDevice]
    throttleWriteIOPSDevice: list[ThrottleDevice]


class HugepageLimit(TypedDict):
    """One of `linux.resources.hugepageLimits`."""

    pageSize: str
    limit: U64


class InterfacePriority(TypedDict):
    """One of `network.priorities`."""

    name: str
    priority: U32


class Network(TypedDict, total=False):
    """`linux.resources.network`."""

    classID: U32
    priorities: list[InterfacePriority]


class LinuxResources(TypedDict, total=False):
    """`linux.resources`, and the limits of an update."""

    devices: list[DeviceCgroup]
    memory: Memory
    cpu: CPU
    pids: Pids
    blockIO: BlockIO
    hugepageLimits: list[HugepageLimit]
    network: Network
    rdma: dict[str, Any]
    unified: dict[str, str]


class SeccompArg(TypedDict, total=False):
    """One condition of a seccomp rule."""

    index: Required[U32]
    value: Required[U64]
    valueTwo: U64
    op: Required[str]


class Syscall(TypedDict, total=False):
    """One seccomp rule."""

    names: Required[list[str]]
    action: Required[str]
    errnoRet: U32
    args: list[SeccompArg]


class Seccomp(TypedDict, total=False):
    """`linux.seccomp`."""

    defaultAction: Required[str]
    defaultErrnoRet: U32
    architectures: list[str]
    flags: list[str]
    listenerPath: str
    listenerMetadata: str
    syscalls: list[Syscall]


class IntelRdt(TypedDict, total=False):
    """`linux.intelRdt`."""

    closID: str
    l3CacheSchema: str
    memBwSchema: str


class Linux(TypedDict, total=False):
    """`linux`."""

    uidMappings: list[IDMapping]
    gidMappings: list[IDMapping]
    sysctl: dict[str, str]
    resources: LinuxResources
    cgroupsPath: str
    namespaces: list[Namespace]
    devices: list[Device]
    seccomp: Seccomp
    rootfsPropagation: str
    maskedPaths: list[str]
    readonlyPaths: list[str]
    mountLabel: str
    intelRdt: IntelRdt
    personality: dict[str, Any]
    timeOffsets: dict[str, Any]


class Spec(TypedDict, total=False):
    """A container's config.json."""

    ociVersion: str
    process: Process
    root: Root
    hostname: str
    domainname: str
    mounts: list[Mount]
    hooks: Hooks
    annotations: dict[str, str]
    linux: Linux


@dataclass(frozen=True)
class Bundle:
    """A container as a container manager leaves it on disk.

    Attributes:
        path: the bundle's directory, absolute.
        spec: what config.json says, checked.
        rootfs: the root file system's directory, absolute; it may be missing, since containerd has the shim mount it.
    """

    path: Path
    spec: Spec
    rootfs: Path


def load_bundle(bundle: Path) -> Bundle:
    """Read and check `config.json`.

    Raises:
        NotFound: the directory or its config.json is missing.
        InvalidArgument: config.json cannot be read, is too large, is not JSON, or breaks the specification.
    """
    path = Path(os.path.abspath(bundle))
    config = path / "config.json"
    try:
        spec = parse_spec(_read_bounded(config))
        root = spec["root"]["path"]
        rootfs = Path(os.path.realpath(path / root))
        # An absolute path is the caller's choice. A relative one means "in the bundle", and has to be.
        if not os.path.isabs(root) and not rootfs.is_relative_to(os.path.realpath(path)):
            raise InvalidArgument(f"root.path: '{root}' leads out of the bundle")
    except InvalidArgument as error:
        raise InvalidArgument(f"{config}: {error.message}", hint=error.hint) from error
    return Bundle(path, spec, rootfs)


def parse_spec(text: bytes | str) -> Spec:
    """A container's spec.

    Raises:
        InvalidArgument: it is too large, not JSON, breaks the specification, or lacks a process or a root.
    """
    spec = _parse(text, Spec)
    _check_version(spec.get("ociVersion"))
    for key in ("process", "root"):
        if key not in spec:
            raise InvalidArgument(f"{key} is missing")
    if not spec["root"]["path"]:
        raise InvalidArgument("root.path is empty")
    for key, name in (("hostname", spec.get("hostname", "")), ("domainname", spec.get("domainname", ""))):
        if (length := len(name.encode())) > MAX_HOSTNAME:
            raise InvalidArgument(f"{key} is {length} bytes long; the maximum is {MAX_HOSTNAME}")
    _check_process(spec["process"], "process.")
    _check_paths("mounts", (mount["destination"] for mount in spec.get("mounts", [])))
    linux = spec.get("linux", {})
    _check_paths("linux.devices", (device["path"] for device in linux.get("devices", [])))
    _check_paths("linux.maskedPaths", linux.get("maskedPaths", []))
    _check_paths("linux.readonlyPaths", linux.get("readonlyPaths", []))
    if ".." in linux.get("cgroupsPath", "").split("/"):
        raise InvalidArgument(f"linux.cgroupsPath: {linux['cgroupsPath']!a} contains '..'")
    kinds = [namespace["type"] for namespace in linux.get("namespaces", [])]
    if len(kinds) != len(set(kinds)):
        raise InvalidArgument(f"linux.namespaces: duplicate type: {', '.join(sorted(kinds))}")
    return spec


def namespace_path(spec: Spec, kind: NamespaceType) -> str:
    """The path of the namespace that a container is to join; "" for a new one, and without one of that type."""
    namespaces = spec.get("linux", {}).get("namespaces", ())
    return next((entry.get("path", "") for entry in namespaces if entry["type"] == kind), "")


def parse_process(text: bytes | str) -> Process:
    """A further process of a container, as exec gets it.

    Raises:
        InvalidArgument: it is too large, not JSON, or breaks the specification.
    """
    process = _parse(text, Process)
    _check_process(process, "")
    return process


def parse_resources(text: bytes | str) -> LinuxResources:
    """New limits, as update gets them.

    Raises:
        InvalidArgument: they are too large, not JSON, or break the specification.
    """
    return _parse(text, LinuxResources)


_Document = TypeVar("_Document", Spec, Process, LinuxResources)


def _parse(text: bytes | str, kind: type[_Document]) -> _Document:
    if len(text) > MAX_SPEC:
        raise InvalidArgument(f"the document is larger than {MAX_SPEC >> 20} MiB")
    try:
        # Engines in Go read what is not UTF-8 like this. Theirs is what the process gets with other runtimes.
        decoded = text if isinstance(text, str) else text.decode(errors="replace")
        value = json.loads(decoded, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidArgument("the document is nested too deeply") from None
    except ValueError as error:  # malformed, or an integer of thousands of digits
        raise InvalidArgument(f"the document is not JSON: {' '.join(str(error).split())}") from None
    return cast(_Document, conform(value, kind, ""))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _check_version(version: str | None) -> None:
    if version is None:
        raise InvalidArgument("ociVersion is missing")
    found = _VERSION.fullmatch(version)
    if found is None:
        raise InvalidArgument(f"ociVersion: expected a version such as 1.2.1, got {version[:40]!a}")
    if found[1] != "1":
        raise InvalidArgument(f"ociVersion {version[:40]} is not supported; every 1.x is")


def _check_process(process: Process, prefix: str) -> None:
    if not process.get("args"):
        raise InvalidArgument(f"{prefix}args is missing or empty")
    if not process.get("cwd", "").startswith("/"):
        raise InvalidArgument(f"{prefix}cwd: expected an absolute path, got {process.get('cwd')!a}")


def _check_paths(where: str, paths: Iterable[str]) -> None:
    for index, path in enumerate(paths):
        if not path.startswith("/") or ".." in path.split("/"):
            raise InvalidArgument(f"{where}[{index}]: expected an absolute path without '..', got {path!a}")


def _read_bounded(path: Path) -> bytes:
    try:
        # Non-blocking: a FIFO in the file's place must not hang the caller.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist", hint="a bundle is a directory that contains a config.json") from None
    except OSError as error:
        raise InvalidArgument(f"cannot open: {os.strerror(error.errno or 0).lower()}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidArgument("not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_SPEC + 1)
    finally:
        os.close(descriptor)
