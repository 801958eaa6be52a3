"""`kata list` and `kata inspect`: the sandboxes of this host, whoever started them.

A sandbox tells of itself over its management socket. Of one that does not answer, its state directory tells what it
can.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kata.cli import gc
from kata.cli.naming import resolve_sandbox
from kata.errors import KataError, NotFound
from kata.management.client import request
from kata.runtime.hypervisor.console import tail
from kata.runtime.launch import timings
from kata.runtime.ledger.journal import STATE_ROOT
from kata.runtime.ledger.names import split
from kata.runtime.sandbox.origin import origin_of
from kata.shim.handover import PREFIX

#: Seconds for a sandbox to tell of itself, which takes milliseconds.
_ANSWER_TIMEOUT_S = 5.0


def inspect(sandbox: str, state_root: Path = Path(STATE_ROOT)) -> dict[str, Any]:
    """What is known of one sandbox; docs/reference/cli.md has the fields.

    Args:
        sandbox: its name, as `naming.resolve_sandbox` takes it.
        state_root: the directory of state directories.

    Raises:
        InvalidArgument: the name is invalid, or ambiguous.
        NotFound: it does not exist.
    """
    directory = resolve_sandbox(sandbox, state_root)
    if not directory.is_dir():
        raise NotFound(f"sandbox {sandbox} does not exist", hint="kata list shows all sandboxes")
    return asyncio.run(look(directory))


def inspect_all(state_root: Path = Path(STATE_ROOT)) -> list[dict[str, Any]]:
    """The same of all sandboxes, in the order of their names."""
    found = asyncio.run(_look_at_all(directories(state_root)))
    return [one for one in found if os.path.isdir(one["state_directory"])]  # the others have ended meanwhile


def directories(state_root: Path = Path(STATE_ROOT)) -> list[Path]:
    """The state directories of all sandboxes, by name; those of VMs in standby are none's yet."""
    return [state_root / name for name in gc.candidates(state_root, state_root) if not name.startswith(PREFIX)]


async def _look_at_all(directories: Sequence[Path]) -> list[dict[str, Any]]:
    return await asyncio.gather(*(look(directory) for directory in directories))


async def look(directory: Path, timeout: float | None = None) -> dict[str, Any]:
    """What is known of the sandbox of a state directory, which answers within so many seconds or does not."""
    sandbox_id, namespace = split(directory.name)
    found: dict[str, Any] = {
        "id": sandbox_id,
        "namespace": namespace,
        **origin_of(namespace, {}),
        **await _ask_or_guess(directory, _ANSWER_TIMEOUT_S if timeout is None else timeout),
        "state_directory": str(directory),
    }
    try:
        start = timings.read(directory)
        found.update(started=start.began, start_phases=[asdict(phase) for phase in start.phases])
    except KataError:
        found.update(started=None, start_phases=[])
    return found


async def _ask_or_guess(directory: Path, timeout: float) -> dict[str, Any]:
    """What a sandbox says, or what becomes of it if it says nothing."""
    try:
        said: dict[str, Any] = json.loads(await request(directory, "GET", "/sandbox", timeout=timeout))
        return {name: value for name, value in said.items() if name != "id"}
    except NotFound as error:
        if not gc.is_running(directory):
            return {"state": "dead", **_last_words(directory)}
        # A sandbox writes this once it can be asked.
        if not (directory / timings.FILE_NAME).exists():
            return {"state": "starting", **_last_words(directory)}
        return {"state": "unknown", "error": f"{error}: another version has started it", **_last_words(directory)}
    except (KataError, ValueError, AttributeError) as error:
        return {"state": "unknown", "error": str(error), **_last_words(directory)}


def _last_words(directory: Path) -> dict[str, Any]:
    return {"log_tails": {path.name: tail(path).splitlines() for path in sorted(directory.glob("*.log"))}}
