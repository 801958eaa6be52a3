"""What of a spec, a process or new limits the guest does not get, for the log.

That is what the agent's protocol cannot carry, such as a field that a newer specification has added, and capabilities
that only a newer kernel has. What `kata.oci.edit` removes because it means nothing in a guest is not named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kata.oci import capabilities
from kata.oci.convert import dropped_fields

if TYPE_CHECKING:
    from kata.oci.spec import LinuxResources, Process, Spec


def of_spec(spec: Spec) -> list[str]:
    """Paths, e.g. "linux.timeOffsets", "mounts[2].uidMappings", "process.capabilities: CAP_NEW"."""
    return [*dropped_fields("Spec", spec), *_unknown(spec.get("process", {}), "process.")]


def of_process(process: Process) -> list[str]:
    """Paths in an exec's process."""
    return [*dropped_fields("Process", process), *_unknown(process, "")]


def of_resources(resources: LinuxResources) -> list[str]:
    """Paths in an update's limits."""
    return list(dropped_fields("LinuxResources", resources))


def _unknown(process: Process, prefix: str) -> list[str]:
    names = capabilities.unknown_of(process.get("capabilities", {}))
    return [f"{prefix}capabilities: {' '.join(names)}"] if names else []
