"""Start one sandbox with a configuration file, print the time at which its agent answered, stop it.

The benchmark runs this as a process of its own, so that everything that a front end loads and does is measured. It
starts as the shim does (`kata.shim.prelaunch`): QEMU first.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from kata.shim.imports import leave_out_inspect, leave_out_openssl, leave_out_pure_protobuf, load_asyncio


def main() -> None:
    """Do it; the configuration file is the only argument."""
    leave_out_inspect()
    leave_out_openssl()
    from kata.oci.default import default_spec
    from kata.runtime.config.loader import load
    from kata.runtime.launch.mount_namespace import enter_mount_namespace
    from kata.runtime.launch.prelaunch import prelaunch
    from kata.runtime.ledger.journal import STATE_ROOT, claim

    sandbox_id = f"bench-{os.urandom(4).hex()}"
    ledger = claim(f"{STATE_ROOT}/{sandbox_id}")
    enter_mount_namespace(ledger.directory)
    spec = default_spec(["true"], rootfs="/nonexistent", hostname=sandbox_id)
    (Path(ledger.directory) / "config.json").write_text(json.dumps(spec), encoding="utf-8")
    config = load(Path(sys.argv[1])).config
    prepared = prelaunch(sandbox_id, ledger.directory, config, ledger)

    load_asyncio()
    leave_out_pure_protobuf()
    import asyncio

    from kata.oci.spec import load_bundle
    from kata.runtime.launch import timings
    from kata.runtime.sandbox.start import start_sandbox

    async def start() -> float:
        begun, now = time.monotonic(), time.time()
        bundle = load_bundle(Path(ledger.directory))
        sandbox = await start_sandbox(sandbox_id, bundle, config, ledger, begun=begun, prepared=prepared)
        # What follows the answer, the set-up of the sandbox, has no counterpart with QEMU alone.
        answer = next(
            phase for phase in timings.read(Path(ledger.directory)).phases if phase.name in ("first answer", "boot")
        )
        await sandbox.stop()
        return now + (answer.begin_ms + answer.length_ms) / 1000

    sys.stdout.write(f"{asyncio.run(start())}\n")


if __name__ == "__main__":
    main()
