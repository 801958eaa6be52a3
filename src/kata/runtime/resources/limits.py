"""The limits of a sandbox's containers as their specs and, for all of a pod, CRI's annotations give them.

Imports nothing slow: a shim decides the VM's size before anything else.

Source of the annotations: containerd's pkg/cri/annotations.
"""

from __future__ import annotations

from collections.abc import Mapping

from kata.errors import InvalidArgument
from kata.oci.annotations import ContainerType, classify
from kata.oci.spec import Spec
from kata.runtime.config.settings import Config
from kata.runtime.resources.sizing import Budget, Demand, Size, demand

#: What containerd's CRI plugin says on the sandbox about the pod's containers, known before any of them exists.
_CRI_MEMORY = "io.kubernetes.cri.sandbox-memory"
_CRI_CPU_QUOTA = "io.kubernetes.cri.sandbox-cpu-quota"
_CRI_CPU_PERIOD = "io.kubernetes.cri.sandbox-cpu-period"


def announced(spec: Spec, host: Size) -> Demand:
    """The sums of the limits of a pod's containers, which CRI writes on its sandbox.

    Raises:
        InvalidArgument: an annotation is not a number, or not one that a limit can be.
    """
    annotations: Mapping[str, str] = spec.get("annotations") or {}
    return demand(
        {
            "memory": {"limit": _number(annotations, _CRI_MEMORY)},
            "cpu": {"quota": _number(annotations, _CRI_CPU_QUOTA), "period": _number(annotations, _CRI_CPU_PERIOD)},
        },
        host,
    )


def sandbox_budget(sandbox_id: str, spec: Spec, config: Config, host: Size) -> Budget:
    """What a sandbox's containers may use, before the first one is created.

    Args:
        sandbox_id: the id of the first container as well.
        spec: of the first container, or of the pod's sandbox.
        config: the defaults and maxima.
        host: what the host has.

    Raises:
        InvalidArgument: a limit that no kernel would take.
    """
    budget = Budget(config, host, announced(spec, host))
    add_container(budget, sandbox_id, spec)
    return budget


def add_container(budget: Budget, container_id: str, spec: Spec) -> None:
    """Count a container in, unless it is a pod's sandbox, which runs nothing of its own. Raises as `Budget.set`."""
    annotations = {name: str(value) for name, value in (spec.get("annotations") or {}).items()}
    if classify(annotations, container_id)[0] != ContainerType.SANDBOX:
        budget.set(container_id, (spec.get("linux") or {}).get("resources"))


def _number(annotations: Mapping[str, str], name: str) -> int:
    text = annotations.get(name, "0")
    try:
        return max(0, int(text))
    except ValueError:
        raise InvalidArgument(f"annotation {name}: {text!r} is not a number") from None
