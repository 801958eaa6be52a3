"""A boot of a guest image before it becomes the current one: until its agent answers."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from kata.errors import FailedPrecondition, VmLaunchError
from kata.osbuilder import store


def trial_boot(directory: Path) -> None:
    """Boot the guest of a directory with an image's files, as a sandbox without limits would.

    Raises:
        FailedPrecondition: its agent did not answer; the message has the last lines of the console.
        KataError: there is no VM to be had on this host.
    """
    import asyncio

    asyncio.run(_boot(directory))


async def _boot(directory: Path) -> None:
    from dataclasses import replace

    from kata.cli.render import say
    from kata.runtime.config.loader import load
    from kata.runtime.hypervisor import accel
    from kata.runtime.launch.bring_up import bring_up
    from kata.runtime.launch.host import look_at_host
    from kata.runtime.launch.timings import Timings
    from kata.runtime.launch.vm_plan import plan_vm
    from kata.runtime.ledger.journal import STATE_ROOT, claim
    from kata.runtime.ledger.kinds import PROCESS

    config = load().config
    hypervisor = replace(
        config.hypervisor,
        kernel=directory / "vmlinux",
        initrd=directory / "initrd",
        image=next((directory / name for name in store.ROOTS if (directory / name).exists()), None),
        kernel_verity_params="",
    )
    config = replace(config, hypervisor=hypervisor, factory=replace(config.factory, enable_template=False))
    ledger = claim(f"{STATE_ROOT}/trial-{secrets.token_hex(6)}")
    try:
        ledger.hold(PROCESS, ledger.directory)
        accelerator = await accel.choose_for(config.hypervisor)
        host = look_at_host(config.hypervisor, accelerator.name)
        # The guest alone: no files are served to it.
        plan = replace(
            plan_vm("trial", Path(ledger.directory), {}, config, host), share_dir=None, root_dir=None, empty_disks=()
        )
        vm, agent = await bring_up(plan, config, ledger, Timings(Path(ledger.directory), time.monotonic()), say)
        await agent.close()
        await vm.stop(0)
    except VmLaunchError as error:
        raise FailedPrecondition(
            f"the guest does not boot: {error.message}",
            hint="the current image has not been changed; `kata kernel check VERSION` looks at the kernel's options",
        ) from error
    finally:
        for problem in ledger.release():
            say(f"cannot release {problem}")
