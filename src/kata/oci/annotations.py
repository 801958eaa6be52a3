"""What a container engine's annotations say about pods: is this a sandbox, a container of one, or neither?

The shim's lean start path imports this: plain functions on a dict, nothing imported but the errors and the id check.
Each engine of Kubernetes has its own keys; docker, nerdctl, podman and ctr write none.
"""

from __future__ import annotations

from kata.errors import InvalidArgument
from kata.oci.ids import validate_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class ContainerType:
    """Type of a bundle's container. The values are Kata's, as in `io.katacontainers.pkg.oci.container_type`."""

    SINGLE = "single_container"
    SANDBOX = "pod_sandbox"
    CONTAINER = "pod_container"


_ENGINES = (
    # container type key, its value for a sandbox, key of the sandbox's id
    ("io.kubernetes.cri.container-type", "sandbox", "io.kubernetes.cri.sandbox-id"),  # containerd
    ("io.kubernetes.cri-o.ContainerType", "sandbox", "io.kubernetes.cri-o.SandboxID"),  # CRI-O
    ("io.kubernetes.docker.type", "podsandbox", "io.kubernetes.sandbox.id"),  # dockershim
)
#: A pod's namespace: of containerd's CRI plugin, then of CRI-O and Docker's shim for Kubernetes.
_POD_NAMESPACE = ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace")


def pod_namespace(annotations: Mapping[str, str]) -> str:
    """Kubernetes' namespace of the pod that a bundle is of; "" if it is of none."""
    return next((annotations[key] for key in _POD_NAMESPACE if annotations.get(key)), "")


def classify(annotations: Mapping[str, str], own_id: str) -> tuple[str, str]:
    """The `ContainerType` of a bundle and the id of the sandbox that it is, or belongs in.

    Args:
        annotations: the spec's.
        own_id: the bundle's container id; the answer's second half unless it is a container of a pod.

    Raises:
        InvalidArgument: the type is unknown, or a pod's container names no sandbox or an invalid id.
    """
    for type_key, sandbox_value, sandbox_id_key in _ENGINES:
        value = annotations.get(type_key)
        if value is None:
            continue
        if value == sandbox_value:
            return ContainerType.SANDBOX, own_id
        if value != "container":
            raise InvalidArgument(f"annotation {type_key}: {value!r} is neither '{sandbox_value}' nor 'container'")
        sandbox_id = annotations.get(sandbox_id_key)
        if sandbox_id is None:
            raise InvalidArgument(f"annotation {sandbox_id_key} is missing on container '{own_id}' of a pod")
        return ContainerType.CONTAINER, validate_id(sandbox_id, f"annotation {sandbox_id_key}:")
    return ContainerType.SINGLE, own_id
