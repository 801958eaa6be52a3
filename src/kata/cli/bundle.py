"""`kata bundle`: one archive with what a bug report needs, without secrets; Kata's `kata-collect-data`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from kata.bugreport import archive
from kata.bugreport.collect import Collected, collect
from kata.bugreport.plan import Host, is_reported, plan
from kata.cli.gc import candidates
from kata.cli.render import printable
from kata.cli.root import require_root
from kata.errors import KataError
from kata.runtime.config.loader import SYSTEM_PATHS, load
from kata.runtime.ledger.journal import STATE_ROOT

#: Of the whole report: whoever waits for it should know that it ends.
_TIMEOUT_S = 300.0
_CONTAINERD_CONFIGURATION = Path("/etc/containerd/config.toml")
#: How this program runs itself, wherever it is installed: a launcher may have found the package without `site`.
_KATA = (sys.executable, "-IS", "-c", f"import sys; sys.path[:] = {sys.path!r}; from kata.cli.main import main; main()")


def look_at_host(config: Path | None, state_root: Path = Path(STATE_ROOT)) -> Host:
    """Find out what there is to report on. What cannot be listed is left out; its part of the report says why."""
    try:
        configuration: Sequence[Path] = load(config).sources
    except KataError:
        # It is wrong, and belongs into the report all the more.
        named = [config or Path(os.environ.get("KATA_CONF_FILE", "")), *SYSTEM_PATHS]
        configuration = [path.absolute() for path in named if path.is_file()][:1]
    return Host(
        kata=_KATA,
        configuration=configuration,
        config_option=("--config", str(config)) if config else (),
        containerd_configuration=[path for path in (_CONTAINERD_CONFIGURATION,) if path.is_file()],
        state_root=state_root,
        sandboxes={name: files for name in candidates(state_root) if (files := _files(state_root / name))},
    )


def _files(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(
                entry.name for entry in entries if entry.is_file(follow_symlinks=False) and is_reported(entry.name)
            )
    except OSError:
        return []  # it has just ended


def default_path() -> Path:
    """A name in the working directory that tells host and time."""
    return Path(f"kata-bundle-{os.uname().nodename}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar.gz")


def run(output: Path | None, config: Path | None, *, dry_run: bool) -> None:
    """Print what the report will have, and write it.

    Args:
        output: path of the archive; None: a name in the working directory.
        config: configuration file to use, and to report.
        dry_run: only print.

    Raises:
        PermissionDenied: this is not root.
        InvalidArgument, AlreadyExists, ResourceExhausted: as `archive.write`.
    """
    require_root("kata bundle")
    parts = list(plan(look_at_host(config)))
    print("The report has, without secrets:")
    width = max((len(printable(part.name)) for part in parts), default=0)
    for part in parts:
        print(f"  {printable(part.name):<{width}}  {part.what}")
    if dry_run:
        return
    print(flush=True)
    path = output or default_path()
    until = time.monotonic() + _TIMEOUT_S
    removed = 0

    def tell(one: Collected) -> None:
        nonlocal removed
        removed += one.removed
        if one.problem:
            print(f"  {printable(one.part.name)}: {printable(one.problem)}", flush=True)

    archive.write(path, (collect(part, until=until) for part in parts), tell)
    print(f"{removed} secrets were removed; look through it before you publish it")
    print(path)
