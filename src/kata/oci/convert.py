"""Conversion of the OCI specification between JSON and the agent's protocol (oci.proto).

One table maps properties to fields, and says how "absent" is encoded: proto3 has no absent numbers, so zero may mean
either, and each field's rule says which. The measure is the behaviour of crun and the kernel: crun in the guest has to
read what the user wrote on the host.

`dropped_fields` names what of a spec the protocol cannot carry, so that a warning can be given.

Not for: changing a spec (`kata.oci.edit`), or checking one (`kata.oci.spec`).
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

from kata.errors import InvalidArgument
from kata.protocols import oci_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kata.oci.spec import LinuxResources, Process, Spec

# Rules of how a property is encoded.
_OMIT = "omit"  # zero, false and the empty string mean absent
_KEEP = "keep"  # zero is a value; absent becomes zero, which is its default anyway
_OPTIONAL = "optional"  # the field has presence
_WILDCARD = "wildcard"  # absent means every number, and is encoded as -1
_MODE = "mode"  # permission bits of a device node
_LIST = "list"  # of strings or numbers; the empty list means absent
_MAP = "map"  # of strings; the empty map means absent
_ONE = "one"  # a message, which has presence
_MANY = "many"  # messages; the empty list means absent


class _Field(NamedTuple):
    key: str
    name: str
    rule: str = _OMIT
    message: str = ""


_TABLE: Mapping[str, tuple[_Field, ...]] = {
    "Spec": (
        _Field("ociVersion", "Version", _KEEP),
        _Field("process", "Process", _ONE, "Process"),
        _Field("root", "Root", _ONE, "Root"),
        _Field("hostname", "Hostname"),
        _Field("domainname", "Domainname"),
        _Field("mounts", "Mounts", _MANY, "Mount"),
        _Field("hooks", "Hooks", _ONE, "Hooks"),
        _Field("annotations", "Annotations", _MAP),
        _Field("linux", "Linux", _ONE, "Linux"),
    ),
    "Process": (
        _Field("terminal", "Terminal"),
        _Field("consoleSize", "ConsoleSize", _ONE, "Box"),
        _Field("user", "User", _ONE, "User"),
        _Field("args", "Args", _LIST),
        _Field("env", "Env", _LIST),
        _Field("cwd", "Cwd"),
        _Field("capabilities", "Capabilities", _ONE, "LinuxCapabilities"),
        _Field("rlimits", "Rlimits", _MANY, "POSIXRlimit"),
        _Field("noNewPrivileges", "NoNewPrivileges"),
        _Field("apparmorProfile", "ApparmorProfile"),
        # Absent means "as the runtime's own", 0 is the kernel's default: the guest's runtime runs with that default.
        _Field("oomScoreAdj", "OOMScoreAdj", _KEEP),
        _Field("selinuxLabel", "SelinuxLabel"),
    ),
    "Box": (_Field("height", "Height", _KEEP), _Field("width", "Width", _KEEP)),
    "User": (
        _Field("uid", "UID", _KEEP),
        _Field("gid", "GID", _KEEP),
        _Field("umask", "Umask", _OPTIONAL),
        _Field("additionalGids", "AdditionalGids", _LIST),
        _Field("username", "Username"),
    ),
    "LinuxCapabilities": (
        _Field("bounding", "Bounding", _LIST),
        _Field("effective", "Effective", _LIST),
        _Field("inheritable", "Inheritable", _LIST),
        _Field("permitted", "Permitted", _LIST),
        _Field("ambient", "Ambient", _LIST),
    ),
    "POSIXRlimit": (_Field("type", "Type", _KEEP), _Field("hard", "Hard", _KEEP), _Field("soft", "Soft", _KEEP)),
    "Root": (_Field("path", "Path", _KEEP), _Field("readonly", "Readonly")),
    "Mount": (
        _Field("destination", "destination", _KEEP),
        _Field("source", "source"),
        _Field("type", "type"),
        _Field("options", "options", _LIST),
    ),
    "Hooks": (
        _Field("prestart", "Prestart", _MANY, "Hook"),
        _Field("createRuntime", "CreateRuntime", _MANY, "Hook"),
        _Field("createContainer", "CreateContainer", _MANY, "Hook"),
        _Field("startContainer", "StartContainer", _MANY, "Hook"),
        _Field("poststart", "Poststart", _MANY, "Hook"),
        _Field("poststop", "Poststop", _MANY, "Hook"),
    ),
    "Hook": (
        _Field("path", "Path", _KEEP),
        _Field("args", "Args", _LIST),
        _Field("env", "Env", _LIST),
        _Field("timeout", "Timeout"),  # a timeout of 0 is against the specification
    ),
    "Linux": (
        _Field("uidMappings", "UIDMappings", _MANY, "LinuxIDMapping"),
        _Field("gidMappings", "GIDMappings", _MANY, "LinuxIDMapping"),
        _Field("sysctl", "Sysctl", _MAP),
        _Field("resources", "Resources", _ONE, "LinuxResources"),
        _Field("cgroupsPath", "CgroupsPath"),
        _Field("namespaces", "Namespaces", _MANY, "LinuxNamespace"),
        _Field("devices", "Devices", _MANY, "LinuxDevice"),
        _Field("seccomp", "Seccomp", _ONE, "LinuxSeccomp"),
        _Field("rootfsPropagation", "RootfsPropagation"),
        _Field("maskedPaths", "MaskedPaths", _LIST),
        _Field("readonlyPaths", "ReadonlyPaths", _LIST),
        _Field("mountLabel", "MountLabel"),
        _Field("intelRdt", "IntelRdt", _ONE, "LinuxIntelRdt"),
    ),
    "LinuxIDMapping": (
        _Field("hostID", "HostID", _KEEP),
        _Field("containerID", "ContainerID", _KEEP),
        _Field("size", "Size", _KEEP),
    ),
    "LinuxNamespace": (_Field("type", "Type", _KEEP), _Field("path", "Path")),
    "LinuxDevice": (
        _Field("path", "Path", _KEEP),
        _Field("type", "Type", _KEEP),
        _Field("major", "Major", _KEEP),
        _Field("minor", "Minor", _KEEP),
        _Field("fileMode", "FileMode", _MODE),
        _Field("uid", "UID"),  # root owns a node unless told otherwise
        _Field("gid", "GID"),
    ),
    "LinuxResources": (
        _Field("devices", "Devices", _MANY, "LinuxDeviceCgroup"),
        _Field("memory", "Memory", _ONE, "LinuxMemory"),
        _Field("cpu", "CPU", _ONE, "LinuxCPU"),
        _Field("pids", "Pids", _ONE, "LinuxPids"),
        _Field("blockIO", "BlockIO", _ONE, "LinuxBlockIO"),
        _Field("hugepageLimits", "HugepageLimits", _MANY, "LinuxHugepageLimit"),
        _Field("network", "Network", _ONE, "LinuxNetwork"),
        _Field("unified", "Unified", _MAP),
    ),
    # A device number of 0 is a number: it must not become "every device".
    "LinuxDeviceCgroup": (
        _Field("allow", "Allow", _KEEP),
        _Field("type", "Type"),
        _Field("major", "Major", _WILDCARD),
        _Field("minor", "Minor", _WILDCARD),
        _Field("access", "Access"),
    ),
    # Every engine and runc take a limit of 0 for no limit. crun would write the 0, and the kernel would kill at once.
    "LinuxMemory": (
        _Field("limit", "Limit"),
        _Field("reservation", "Reservation"),
        _Field("swap", "Swap"),
        _Field("kernel", "Kernel"),
        _Field("kernelTCP", "KernelTCP"),
        _Field("swappiness", "Swappiness"),
        _Field("disableOOMKiller", "DisableOOMKiller"),
    ),
    "LinuxCPU": (
        _Field("shares", "Shares"),
        _Field("quota", "Quota"),
        _Field("period", "Period"),
        _Field("realtimeRuntime", "RealtimeRuntime"),
        _Field("realtimePeriod", "RealtimePeriod"),
        _Field("cpus", "Cpus"),
        _Field("mems", "Mems"),
        _Field("idle", "Idle", _OPTIONAL),
    ),
    "LinuxPids": (_Field("limit", "Limit", _KEEP),),
    "LinuxBlockIO": (
        _Field("weight", "Weight"),
        _Field("leafWeight", "LeafWeight"),
        _Field("weightDevice", "WeightDevice", _MANY, "LinuxWeightDevice"),
        _Field("throttleReadBpsDevice", "ThrottleReadBpsDevice", _MANY, "LinuxThrottleDevice"),
        _Field("throttleWriteBpsDevice", "ThrottleWriteBpsDevice", _MANY, "LinuxThrottleDevice"),
        _Field("throttleReadIOPSDevice", "ThrottleReadIOPSDevice", _MANY, "LinuxThrottleDevice"),
        _Field("throttleWriteIOPSDevice", "ThrottleWriteIOPSDevice", _MANY, "LinuxThrottleDevice"),
    ),
    "LinuxWeightDevice": (
        _Field("major", "Major", _KEEP),
        _Field("minor", "Minor", _KEEP),
        _Field("weight", "Weight"),
        _Field("leafWeight", "LeafWeight"),
    ),
    "LinuxThrottleDevice": (
        _Field("major", "Major", _KEEP),
        _Field("minor", "Minor", _KEEP),
        _Field("rate", "Rate", _KEEP),  # 0 lifts a limit
    ),
    "LinuxHugepageLimit": (_Field("pageSize", "Pagesize", _KEEP), _Field("limit", "Limit", _KEEP)),
    "LinuxNetwork": (
        _Field("classID", "ClassID"),
        _Field("priorities", "Priorities", _MANY, "LinuxInterfacePriority"),
    ),
    "LinuxInterfacePriority": (_Field("name", "Name", _KEEP), _Field("priority", "Priority", _KEEP)),
    "LinuxSeccomp": (
        _Field("defaultAction", "DefaultAction", _KEEP),
        _Field("defaultErrnoRet", "DefaultErrnoRet", _OPTIONAL),
        _Field("architectures", "Architectures", _LIST),
        _Field("flags", "Flags", _LIST),
        _Field("syscalls", "Syscalls", _MANY, "LinuxSyscall"),
    ),
    "LinuxSyscall": (
        _Field("names", "Names", _LIST),
        _Field("action", "Action", _KEEP),
        _Field("errnoRet", "errnoret", _OPTIONAL),
        _Field("args", "Args", _MANY, "LinuxSeccompArg"),
    ),
    "LinuxSeccompArg": (
        _Field("index", "Index", _KEEP),
        _Field("value", "Value", _KEEP),
        _Field("valueTwo", "ValueTwo"),
        _Field("op", "Op", _KEEP),
    ),
    "LinuxIntelRdt": (_Field("l3CacheSchema", "L3CacheSchema"),),
}

_Message = TypeVar("_Message", oci_pb2.Spec, oci_pb2.Process, oci_pb2.LinuxResources)

_NODE_TYPE = {"b": stat.S_IFBLK, "p": stat.S_IFIFO}


def to_proto(spec: Spec) -> oci_pb2.Spec:
    """A spec as the agent's protocol carries it.

    Raises:
        InvalidArgument: a value has the wrong type or is out of range, which `kata.oci.spec` rules out.
    """
    return _encoded("Spec", spec, oci_pb2.Spec())


def from_proto(message: oci_pb2.Spec) -> Spec:
    """The spec in a message, for config.json."""
    return cast("Spec", _decode("Spec", message))


def process_to_proto(process: Process) -> oci_pb2.Process:
    """A process as the agent's protocol carries it.

    Raises:
        InvalidArgument: as `to_proto`.
    """
    return _encoded("Process", process, oci_pb2.Process())


def process_from_proto(message: oci_pb2.Process) -> Process:
    """The process in a message."""
    return cast("Process", _decode("Process", message))


def resources_to_proto(resources: LinuxResources) -> oci_pb2.LinuxResources:
    """Limits as the agent's protocol carries them.

    Raises:
        InvalidArgument: as `to_proto`.
    """
    return _encoded("LinuxResources", resources, oci_pb2.LinuxResources())


def resources_from_proto(message: oci_pb2.LinuxResources) -> LinuxResources:
    """The limits in a message."""
    return cast("LinuxResources", _decode("LinuxResources", message))


def dropped_fields(kind: Literal["Spec", "Process", "LinuxResources"], source: Mapping[str, Any]) -> list[str]:
    """Paths of what the protocol cannot carry, e.g. "linux.timeOffsets", "mounts[2].uidMappings".

    Empty lists, objects and strings do not count. A swappiness of 0 does: it differs from none, but is encoded as none.

    Args:
        kind: what the source is.
        source: a spec, a process or limits.
    """
    return list(_dropped(kind, source, ""))


def _encoded(kind: str, source: Mapping[str, Any], target: _Message) -> _Message:
    try:
        _encode(kind, source, target)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"cannot send the spec: {' '.join(str(error).split())}") from error
    return target


def _encode(kind: str, source: Mapping[str, Any], target: Any) -> None:
    for key, name, rule, message in _TABLE[kind]:
        value = source.get(key)
        if rule is _ONE:
            if value is not None:
                part = getattr(target, name)
                part.SetInParent()
                _encode(message, value, part)
        elif rule is _MANY:
            parts = getattr(target, name)
            for entry in value or ():
                _encode(message, entry, parts.add())
        elif rule is _LIST:
            getattr(target, name).extend(value or ())
        elif rule is _MAP:
            getattr(target, name).update(value or {})
        elif rule is _WILDCARD:
            setattr(target, name, -1 if value is None else value)
        elif value is not None:
            if rule is _MODE:
                # No permission at all is a mode too: the type's bits keep it from looking absent.
                value = stat.S_IMODE(value) or _NODE_TYPE.get(source.get("type", ""), stat.S_IFCHR)
            setattr(target, name, value)


def _decode(kind: str, message: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, name, rule, part in _TABLE[kind]:
        if rule is _ONE:
            if message.HasField(name):
                result[key] = _decode(part, getattr(message, name))
            continue
        if rule is _OPTIONAL and not message.HasField(name):
            continue
        value = getattr(message, name)
        if rule is _MANY:
            value = [_decode(part, entry) for entry in value]
        elif rule is _LIST:
            value = list(value)
        elif rule is _MAP:
            value = dict(value)
        elif rule is _WILDCARD:
            if value < 0:
                continue
        elif rule is _MODE:
            if value == 0:
                continue
            value = stat.S_IMODE(value)
        if value or rule in _ZERO_COUNTS:
            result[key] = value
    return result


_ZERO_COUNTS = frozenset((_KEEP, _OPTIONAL, _WILDCARD, _MODE))


def _dropped(kind: str, source: Mapping[str, Any], prefix: str) -> Iterator[str]:
    fields = {field.key: field for field in _TABLE[kind]}
    for key, value in source.items():
        field = fields.get(key)
        if field is None:
            if value not in (None, "", [], {}):
                yield prefix + key
        elif field.rule is _ONE and value is not None:
            yield from _dropped(field.message, value, f"{prefix}{key}.")
        elif field.rule is _MANY:
            for index, entry in enumerate(value or ()):
                yield from _dropped(field.message, entry, f"{prefix}{key}[{index}].")
        elif key == "swappiness" and value == 0:
            yield prefix + key
