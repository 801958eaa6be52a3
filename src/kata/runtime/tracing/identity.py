"""Which sandbox a span is of: attributes of OpenTelemetry's resource, named by its conventions where it has any.

Source: OpenTelemetry's semantic conventions, resource/k8s.md and resource/container.md.
"""

from __future__ import annotations

from collections.abc import Mapping

SANDBOX = "kata.sandbox.id"
CONTAINER = "container.id"
EXEC = "kata.exec.id"
#: Of a pod, by the annotations of containerd and of CRI-O.
_OF_POD = {
    "k8s.pod.name": ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
    "k8s.pod.uid": ("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"),
    "k8s.namespace.name": ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
}


def attributes(sandbox_id: str, namespace: str, annotations: Mapping[str, str]) -> dict[str, str]:
    """The attributes of all spans of a sandbox.

    Args:
        sandbox_id: its id.
        namespace: containerd's; "" if another engine, or none, has made it.
        annotations: of its first container's spec.
    """
    found = {SANDBOX: sandbox_id}
    if namespace:
        found["containerd.namespace"] = namespace
    for name, keys in _OF_POD.items():
        for key in keys:
            if value := annotations.get(key):
                found.setdefault(name, value)
    return found
