"""A policy for a pod, from its manifest: what its containers run and see, and what may be asked of them besides.

Pure: the manifest and the images' configurations in, a document for TOML out. What it does not look at is in
docs/guide/policy.md.

References: containerd's CRI plugin for the annotations that name a container, and for what it mounts; Kubernetes'
API of a pod.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kata.errors import InvalidArgument
from kata.runtime.images.model import ImageConfig

#: What a sandbox of this project needs at any rate.
NEEDED = (
    *("AddARPNeighborsRequest", "CreateContainerRequest", "CreateSandboxRequest", "DestroySandboxRequest"),
    *("GetMetricsRequest", "GetOOMEventRequest", "OnlineCPUMemRequest", "RemoveContainerRequest"),
    *("ReseedRandomDevRequest", "SetGuestDateTimeRequest", "SignalProcessRequest", "StartContainerRequest"),
    *("StartTracingRequest", "StatsContainerRequest", "UpdateContainerRequest", "UpdateInterfaceRequest"),
    *("UpdateRoutesRequest", "WaitProcessRequest"),
)
#: What a pod may ask for without anybody entering its containers.
_USUAL = (
    *("AddSwapRequest", "CloseStdinRequest", "PauseContainerRequest", "ResumeContainerRequest"),
    *("TtyWinResizeRequest", "VolumeStatsRequest", "WriteStreamRequest"),
)
_EXEC, _READ, _FORWARD = "ExecProcessRequest", "ReadStreamRequest", "kata.Forward.Connect"

_KIND = "OCI.Annotations[io.kubernetes.cri.container-type]"
_NAME = "OCI.Annotations[io.kubernetes.cri.container-name]"
#: What every container has, by containerd's CRI plugin and kubelet.
_MOUNTS = (
    *("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/run"),
    *("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/var/run/secrets/kubernetes.io/serviceaccount"),
)
#: Variables that kubelet sets, besides those of other services (`enableServiceLinks`).
_VARIABLES = (
    *("HOSTNAME", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBERNETES_SERVICE_PORT_HTTPS"),
    *("KUBERNETES_PORT", "KUBERNETES_PORT_443_TCP", "KUBERNETES_PORT_443_TCP_PROTO"),
    *("KUBERNETES_PORT_443_TCP_PORT", "KUBERNETES_PORT_443_TCP_ADDR"),
)
#: Without an image to say so, what containerd sets.
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Wishes:
    """What is to be allowed besides what the manifest says.

    Attributes:
        execs: commands that may be executed, each with its arguments.
        variables: names of variables that a container may have with any value.
        logs: whether output may be read.
        forward: whether ports may be forwarded.
        pause: what the container runs that containerd makes for the pod itself: its `sandbox_image`.
    """

    execs: Sequence[Sequence[str]] = ()
    variables: Sequence[str] = ()
    logs: bool = True
    forward: bool = False
    pause: Sequence[str] = ("/pause",)


@dataclass
class Generated:
    """A policy, and what has to be said of it.

    Attributes:
        document: for TOML.
        warnings: what could not be told from the manifest, and so is allowed.
    """

    document: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def generate(documents: Iterable[Any], images: Mapping[str, ImageConfig], wishes: Wishes) -> Generated:
    """The policy of a pod.

    Args:
        documents: of a manifest in YAML; one of them is a pod, or makes pods.
        images: configurations of images, by the names that the manifest has for them.
        wishes: what is to be allowed besides.

    Raises:
        InvalidArgument: there is no pod, or more than one, or it is no manifest of Kubernetes.
    """
    pod = _pod_of(documents)
    found = Generated({})
    rules = [
        {
            "name": "pause",
            "endpoint": "CreateContainerRequest",
            "fields": {_KIND: "sandbox", "OCI.Process.Args": list(wishes.pause)},
        }
    ]
    execs = [list(command) for command in wishes.execs]
    for container in [*_list(pod, "initContainers"), *_list(pod, "containers")]:
        name = _text(container, "name")
        image = images.get(_text(container, "image"))
        fields: dict[str, Any] = {_KIND: "container", _NAME: name}
        arguments = _arguments(container, image)
        if arguments is None:
            found.warnings.append(f"container {name}: what it runs is not known, and may be anything")
        else:
            fields["OCI.Process.Args"] = arguments
        if container.get("envFrom"):
            found.warnings.append(
                f"container {name}: the names of envFrom are not known, and it may have any variables"
            )
        else:
            fields["OCI.Process.Env"] = {"each": {"one_of": _variables(container, image, wishes)}}
        fields["OCI.Mounts"] = {"each": {"fields": {"destination": {"one_of": _destinations(container)}}}}
        rules.append({"name": name, "endpoint": "CreateContainerRequest", "fields": fields})
        execs += _commands(container)
    allowed = {*NEEDED, *_USUAL}
    for command in execs:
        rule = {"name": command[0][:100], "endpoint": _EXEC, "fields": {"process.Args": command}}
        if rule not in rules:
            rules.append(rule)
        allowed.add(_EXEC)
    allowed |= {name for name, wanted in ((_READ, wishes.logs), (_FORWARD, wishes.forward)) if wanted}
    found.document.update(endpoints={"allowed": sorted(allowed)}, rules=rules)
    return found


def _pod_of(documents: Iterable[Any]) -> Mapping[str, Any]:
    """The spec of the only pod in a manifest.

    Raises:
        InvalidArgument: it has none, or several.
    """
    pods = []
    for document in documents:
        spec = document.get("spec") if isinstance(document, Mapping) else None
        for _ in range(3):  # CronJob, Job, Pod
            if not isinstance(spec, Mapping):
                break
            if "containers" in spec:
                pods.append(spec)
                break
            template = spec.get("template") or spec.get("jobTemplate")
            spec = template.get("spec") if isinstance(template, Mapping) else None
    if len(pods) != 1:
        raise InvalidArgument(
            f"the manifest has {len(pods) or 'no'} pods",
            hint="a policy is for one pod, or for what makes pods of a kind",
        )
    return pods[0]


def _list(of: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = of.get(key) or []
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise InvalidArgument(f"{key} of the manifest is no list of objects")
    return found


def _text(of: Mapping[str, Any], key: str) -> str:
    found = of.get(key, "")
    if not isinstance(found, str):
        raise InvalidArgument(f"{key} of the manifest is no text")
    return found


def _texts(of: Mapping[str, Any], key: str) -> list[str]:
    found = of.get(key) or []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise InvalidArgument(f"{key} of the manifest is no list of texts")
    return found


def _arguments(container: Mapping[str, Any], image: ImageConfig | None) -> list[str] | None:
    """What a container executes, as kubelet and CRI put it together; None if that cannot be told."""
    command, arguments = _texts(container, "command"), _texts(container, "args")
    if not command:
        if image is None:
            return None
        command = list(image.entrypoint)
        arguments = arguments or list(image.cmd)
    # kubelet puts values of variables there.
    return None if any("$(" in word for word in (*command, *arguments)) else [*command, *arguments]


def _variables(container: Mapping[str, Any], image: ImageConfig | None, wishes: Wishes) -> list[Any]:
    """Conditions for a variable, NAME=VALUE."""
    exact = list(image.env) if image else [_PATH]
    names = [*_VARIABLES, *wishes.variables]
    for variable in _list(container, "env"):
        name, value = _text(variable, "name"), variable.get("value", "")
        if "valueFrom" in variable or "$(" in str(value):
            names.append(name)
        else:
            exact.append(f"{name}={value}")
    if container.get("tty"):
        exact.append("TERM=xterm")
    return [*dict.fromkeys(exact), *({"like": f"{name}=*"} for name in dict.fromkeys(names))]


def _destinations(container: Mapping[str, Any]) -> list[str]:
    mounts = [*_list(container, "volumeMounts"), *_list(container, "volumeDevices")]
    paths = [_text(mount, "mountPath") or _text(mount, "devicePath") for mount in mounts]
    termination = _text(container, "terminationMessagePath") or "/dev/termination-log"
    return list(dict.fromkeys([*_MOUNTS, termination, *(path.rstrip("/") or "/" for path in paths)]))


def _commands(container: Mapping[str, Any]) -> list[list[str]]:
    """What kubelet executes in a container: probes and handlers of its life."""
    lifecycle = container.get("lifecycle") or {}
    handlers = [container.get(name) for name in ("livenessProbe", "readinessProbe", "startupProbe")]
    handlers += [lifecycle.get(name) for name in ("postStart", "preStop")] if isinstance(lifecycle, Mapping) else []
    execs = [handler.get("exec") for handler in handlers if isinstance(handler, Mapping)]
    return [command for one in execs if isinstance(one, Mapping) and (command := _texts(one, "command"))]
