"""Start one sandbox's machine with a configuration file, print the time at which its agent answered, end it.

The benchmark runs this as a process of its own, so that all that a front end has to load and do counts.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from pathlib import Path

from kata.config.loader import load
from kata.oci.default import default_spec
from kata.oci.spec import Bundle
from kata.sandbox.isolation import enter_mount_namespace
from kata.sandbox.ledger import STATE_ROOT, Ledger, claim
from kata.sandbox.sandbox import Sandbox


async def _start(sandbox_id: str, config: Path, ledger: Ledger) -> float:
    spec = default_spec(["true"], rootfs="/nonexistent", hostname=sandbox_id)
    bundle = Bundle(Path(ledger.directory), spec, Path("/nonexistent"))
    sandbox = await Sandbox.start(sandbox_id, bundle, load(config).config, ledger)
    answered_at = time.time()
    await sandbox.stop()
    return answered_at


def main() -> None:
    sandbox_id = f"bench-{secrets.token_hex(4)}"
    ledger = claim(f"{STATE_ROOT}/{sandbox_id}")
    enter_mount_namespace(ledger.directory)
    sys.stdout.write(f"{asyncio.run(_start(sandbox_id, Path(sys.argv[1]), ledger))}\n")


if __name__ == "__main__":
    main()
