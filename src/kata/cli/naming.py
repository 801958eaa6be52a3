"""What a person calls a sandbox, or a container in it: by the engine's ids, or by Kubernetes' names.

SANDBOX                          id, its first digits, or the name of its state directory
NAMESPACE/POD[/CONTAINER]        as in `kubectl`, for which all sandboxes are asked
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata.errors import InvalidArgument, NotFound
from kata.runtime.ledger.journal import STATE_ROOT
from kata.runtime.ledger.names import find

#: Of a namespace, a pod or a container (Kubernetes, "Object Names and IDs": a DNS subdomain).
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_FORM = "write NAMESPACE/POD or NAMESPACE/POD/CONTAINER, as `kata list` shows them"


@dataclass(frozen=True)
class Named:
    """What a name means.

    Attributes:
        directory: the sandbox's state directory, which need not exist if it was named by its id.
        container: the container's name in its pod, or its id; None if the name has none.
    """

    directory: Path
    container: str | None = None


def resolve(name: str, state_root: Path = Path(STATE_ROOT)) -> Named:
    """Find out what a name means. Not in an event loop: sandboxes may be asked.

    Args:
        name: in one of the forms above.
        state_root: the directory of state directories.

    Raises:
        InvalidArgument: it has none of the forms, or several sandboxes have it.
        NotFound: no sandbox is that pod's.
    """
    if "/" not in name:
        return Named(state_root / find(name, str(state_root)))
    namespace, pod, *rest = name.split("/")
    if len(rest) > 1 or not all(_NAME.fullmatch(part) for part in (namespace, pod, *rest)):
        raise InvalidArgument(f"{name[:100]!a} is not the name of a pod", hint=_FORM)
    from kata.cli import sandboxes

    told = choose_pod(sandboxes.inspect_all(state_root), namespace, pod)
    return Named(Path(told["state_directory"]), *rest)


def resolve_sandbox(name: str, state_root: Path = Path(STATE_ROOT)) -> Path:
    """The state directory of a sandbox, for what is about all of it; see `resolve`.

    Raises:
        InvalidArgument: as `resolve`; and the name is a container's.
        NotFound: as `resolve`.
    """
    named = resolve(name, state_root)
    if named.container is not None:
        raise InvalidArgument(f"{name} is a container", hint=f"name its sandbox: {name.rpartition('/')[0]}")
    return named.directory


def choose_pod(found: Sequence[Mapping[str, Any]], namespace: str, pod: str) -> Mapping[str, Any]:
    """The sandbox of a pod: of several, as after a restart of the pod, the only one that runs.

    Args:
        found: what `kata inspect` tells of each sandbox.
        namespace: Kubernetes'.
        pod: its name there.

    Raises:
        NotFound: there is none.
        InvalidArgument: there are several.
    """
    pods = {one["state_directory"]: one.get("pod") or {} for one in found}
    here = [one for one in found if pods[one["state_directory"]].get("name") == pod]
    here = [one for one in here if pods[one["state_directory"]].get("namespace") == namespace]
    if not here:
        known = sorted({f"{one.get('namespace')}/{one['name']}" for one in pods.values() if one.get("name")})
        raise NotFound(
            f"no sandbox of this host is pod {namespace}/{pod}",
            hint=f"there are {', '.join(known[:8])}{', …' if known[8:] else ''}"
            if known
            else "kata list shows all sandboxes",
        )
    running = [one for one in here if one.get("state") == "running"]
    chosen = running if len(running) == 1 else here
    if len(chosen) > 1:
        names = [Path(one["state_directory"]).name for one in chosen]
        raise InvalidArgument(
            f"several sandboxes are pod {namespace}/{pod}", hint=f"use one of the ids {', '.join(names[:4])}"
        )
    return chosen[0]


def choose_container(sandbox: Mapping[str, Any], wanted: str | None) -> str:
    """The container that is meant: by its id, its name in the pod, or the beginning of its id.

    Args:
        sandbox: what it tells of itself.
        wanted: None if none was named: the one that is not the pod's own.

    Raises:
        NotFound: there is none.
        InvalidArgument: there are several.
    """
    containers: Sequence[Mapping[str, Any]] = sandbox["containers"]
    found: Sequence[Mapping[str, Any]]
    if wanted is None:
        found = [one for one in containers if one["state"] in ("running", "paused")]
        if not found:
            raise NotFound(f"no container of sandbox {sandbox['id']} runs", hint="`kata inspect` says more")
        found = [one for one in found if one["id"] != sandbox["id"]] or found
        several = f"sandbox {sandbox['id']} has several containers"
    else:
        found = (
            [one for one in containers if one["id"] == wanted]
            or _latest([one for one in containers if wanted and one.get("name") == wanted])
            or [one for one in containers if wanted and str(one["id"]).startswith(wanted)]
        )
        if not found:
            raise NotFound(f"sandbox {sandbox['id']} has no container {wanted}", hint=_those(containers))
        several = f"sandbox {sandbox['id']} has several containers {wanted}"
    if len(found) > 1:
        raise InvalidArgument(several, hint=_those(found))
    return str(found[0]["id"])


def _latest(named: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Of containers of one name the one that has not ended: a kubelet keeps the last one that has."""
    return [one for one in named if one["state"] != "stopped"] or named


def _those(containers: Sequence[Mapping[str, Any]]) -> str:
    if not containers:
        return "it has no container"
    return f"name one of {', '.join(str(one.get('name') or one['id']) for one in containers)}"
