"""A container's state in the OCI runtime specification's form, which hooks read and `state` prints.

Source: runtime-spec, runtime.md, "State".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict

OCI_VERSION = "1.1.0"

Status = Literal["creating", "created", "running", "stopped"]


class State(TypedDict):
    """The state's JSON object. `pid` is present while there is a process."""

    ociVersion: str
    id: str
    status: Status
    pid: NotRequired[int]
    bundle: str
    annotations: NotRequired[dict[str, str]]


def make_state(
    container_id: str, status: Status, bundle: str, *, pid: int = 0, annotations: Mapping[str, str] | None = None
) -> State:
    """The state of a container.

    Args:
        container_id: its id.
        status: its status; a paused container is "running" to this specification.
        bundle: absolute path of its bundle.
        pid: the process that represents it on the host; 0 for none. A stopped container has none.
        annotations: its spec's.
    """
    state = State(ociVersion=OCI_VERSION, id=container_id, status=status, bundle=bundle)
    if pid and status != "stopped":
        state["pid"] = pid
    if annotations:
        state["annotations"] = dict(annotations)
    return state
