"""`kata list`, which is `kata ps` as well: the sandboxes of this host, or their containers, a line for each."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kata.cli.options import AsJson
from kata.cli.render import ExitCode
from kata.cli.root import require_root
from kata.cli.template import Template, render

#: What a container engine makes up; its first digits are as good.
_RANDOM_ID = re.compile(r"[0-9a-f]{64}")
_SHORT = 12

SANDBOX_COLUMNS = {
    "SANDBOX": "ID",
    "ENGINE": "Engine",
    "NAMESPACE": "Namespace",
    "POD": "Pod",
    "STATE": "State",
    "CONTAINERS": "Containers",
    "AGE": "Age",
    "VCPUS": "VCPUs",
    "MEMORY": "Memory",
    "ACCEL": "Accelerator",
}
CONTAINER_COLUMNS = {
    "CONTAINER": "ID",
    "NAME": "Name",
    "TYPE": "Type",
    "STATE": "State",
    "EXIT": "ExitStatus",
    "PROCESSES": "Execs",
    "SANDBOX": "Sandbox",
    "POD": "Pod",
    "ENGINE": "Engine",
}


def command(
    containers: Annotated[
        bool, typer.Option("--containers", help="List containers instead of sandboxes, a line for each.")
    ] = False,
    template: Template = None,
    no_trunc: Annotated[bool, typer.Option("--no-trunc", help="Print ids of 64 digits whole.")] = False,
    as_json: AsJson = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Print only names, as other commands take them.")
    ] = False,
) -> int:
    """List the sandboxes of this host, or their containers, whoever has started them."""
    from kata.cli import sandboxes

    require_root("kata list")
    found = sandboxes.inspect_all()
    if as_json:
        print(
            json.dumps([one for each in found for one in each.get("containers", ())] if containers else found, indent=2)
        )
        return ExitCode.OK
    make = container_rows if containers else sandbox_rows
    rows = list(make(found, now=time.time(), whole=no_trunc or quiet))
    if quiet:
        template = "{{.ID}}" if containers else "{{.Name}}"
    print(render(template, rows, CONTAINER_COLUMNS if containers else SANDBOX_COLUMNS), end="")
    return ExitCode.OK


def sandbox_rows(found: Sequence[Mapping[str, Any]], *, now: float, whole: bool = False) -> Iterator[dict[str, Any]]:
    """The fields of each sandbox.

    Args:
        found: what `kata inspect` tells of each. Other versions may tell less.
        now: seconds since 1970.
        whole: whether ids stay as long as they are.
    """
    for one in found:
        vm, containers = one.get("vm") or {}, one.get("containers")
        running = sum(container.get("state") == "running" for container in containers or ())
        started = one.get("started")
        yield {
            "ID": short(one["id"], whole),
            "Name": Path(one["state_directory"]).name,
            "Engine": one.get("engine", ""),
            "Namespace": one.get("namespace", ""),
            "Pod": _pod(one),
            "State": one["state"],
            "Containers": None if containers is None else f"{running}/{len(containers)}",
            "Age": ago(now - started) if started else None,
            "VCPUs": vm.get("vcpus"),
            "Memory": f"{vm['memory_mib']}M" if "memory_mib" in vm else None,
            "Accelerator": vm.get("accelerator"),
            "PID": one.get("pid"),
            "VMPID": vm.get("pid"),
            "StartedAt": started,
            "StateDirectory": one["state_directory"],
        }


def container_rows(found: Sequence[Mapping[str, Any]], *, now: float, whole: bool = False) -> Iterator[dict[str, Any]]:
    """The fields of each container, as `sandbox_rows`."""
    for one in found:
        for container in one.get("containers") or ():
            execs = container.get("execs") or ()
            yield {
                "ID": short(container["id"], whole),
                "Name": container.get("name", ""),
                "Type": "sandbox" if container["id"] == one["id"] and _pod(one) else "container",
                "State": container.get("state", ""),
                "ExitStatus": container.get("exit_status"),
                "Execs": sum(process.get("state") == "running" for process in execs)
                + (container.get("state") == "running"),
                "Sandbox": short(one["id"], whole),
                "Pod": _pod(one),
                "Engine": one.get("engine", ""),
            }


def _pod(one: Mapping[str, Any]) -> str:
    pod = one.get("pod") or {}
    return f"{pod.get('namespace', '')}/{pod['name']}" if pod.get("name") else ""


def short(name: str, whole: bool = False) -> str:
    """An id as it is shown: of a random one the first digits, which `kata` takes for it."""
    return name if whole or not _RANDOM_ID.fullmatch(name) else name[:_SHORT]


def ago(seconds: float) -> str:
    """A length of time in its largest whole unit."""
    for name, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds / length)}{name}"
    return f"{max(0, int(seconds))}s"
