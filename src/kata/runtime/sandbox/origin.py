"""Who a sandbox or container belongs to: the container engine, and Kubernetes' names, as annotations give them.

References: containerd, internal/cri/annotations; CRI-O, pkg/annotations; Podman, libpod.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kata.oci.annotations import pod_namespace

#: The namespace of containerd that each engine keeps its containers in.
_NAMESPACES = {"moby": "docker", "k8s.io": "cri"}
#: The annotation in which an engine that is not containerd gives its name, and what it is called here.
_MANAGER = "io.container.manager"
_MANAGERS = {"libpod": "podman", "cri-o": "cri-o"}
_CRI = "io.kubernetes.cri."
_TYPE = f"{_CRI}container-type"
#: Names of annotations: containerd's CRI plugin, then CRI-O and Docker's shim for Kubernetes.
_POD_NAME = (f"{_CRI}sandbox-name", "io.kubernetes.pod.name")
_POD_UID = (f"{_CRI}sandbox-uid", "io.kubernetes.pod.uid")
_CONTAINER_NAME = (f"{_CRI}container-name", "io.kubernetes.container.name", "nerdctl/name")


def origin_of(namespace: str, annotations: Mapping[str, str]) -> dict[str, Any]:
    """Find out what has asked for a sandbox.

    Args:
        namespace: containerd's; "" for a sandbox of `kata run`.
        annotations: of the specification of its first container; empty if that is not known.

    Returns:
        What `kata inspect` tells of it: `engine` is `containerd`, `cri` (its plugin for Kubernetes), `cri-o`, `docker`,
        `podman` or `kata run`, `engine_by` what says so, `pod` Kubernetes' `namespace`, `name` and `uid`, or None.
    """
    engine, by = _engine(namespace, annotations)
    pod = {
        "namespace": pod_namespace(annotations),
        "name": _first(annotations, _POD_NAME),
        "uid": _first(annotations, _POD_UID),
    }
    return {"engine": engine, "engine_by": by, "pod": pod if pod["name"] else None}


def _engine(namespace: str, annotations: Mapping[str, str]) -> tuple[str, str]:
    manager = _MANAGERS.get(annotations.get(_MANAGER, ""))
    if manager:
        return manager, f"annotation {_MANAGER}"
    if not namespace:
        return "kata run", "no namespace"
    if _TYPE in annotations:
        return "cri", f"annotation {_TYPE}"
    return _NAMESPACES.get(namespace, "containerd"), f"namespace {namespace}"


def container_name(annotations: Mapping[str, str]) -> str:
    """What a container is called in its pod or by its engine; "" if that is not known."""
    return _first(annotations, _CONTAINER_NAME)


def _first(annotations: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((annotations[name] for name in names if annotations.get(name)), "")
