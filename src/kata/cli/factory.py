"""`kata factory`: make, list and remove the templates from which sandboxes are restored; keep VMs in standby."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from kata.cli.render import say, warn
from kata.cli.root import require_root
from kata.cli.template import table
from kata.errors import FailedPrecondition
from kata.runtime.config.loader import load
from kata.runtime.config.settings import Config

app = typer.Typer(help="Manage templates, from which sandboxes are restored.", no_args_is_help=True)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Configuration file to use.", show_default=False)
]

#: For another process that is making a template.
_LOCK_TIMEOUT_S = 60.0


@app.command()
def init(config: ConfigFile = None) -> None:
    """Make the templates for sandboxes without limits, for each way to provide files, unless they exist."""
    import asyncio

    from kata.runtime.launch import shared_fs
    from kata.runtime.launch.vm_plan import with_layers

    loaded = _load(config)
    _check_enabled(loaded)
    require_root("kata factory init")
    decided = shared_fs.decided(loaded)
    # The latter are what `kata run IMAGE` needs.
    for one in dict.fromkeys((*decided, *map(with_layers, decided))):
        key, size = asyncio.run(_init(one))
        print(f"{key}  {size / 1e6:.0f} MB")


async def _init(config: Config) -> tuple[str, int]:
    from kata.runtime.hypervisor import accel
    from kata.runtime.launch.bring_up import ensure_template
    from kata.runtime.launch.host import look_at_host
    from kata.runtime.launch.vm_plan import plan_vm
    from kata.runtime.ledger.journal import STATE_ROOT, claim
    from kata.runtime.ledger.kinds import PROCESS

    accelerator = await accel.choose_for(config.hypervisor)
    ledger = claim(f"{STATE_ROOT}/factory-{secrets.token_hex(6)}")
    try:
        ledger.hold(PROCESS, ledger.directory)
        host = look_at_host(config.hypervisor, accelerator.name)
        plan = plan_vm("factory", Path(ledger.directory), {}, config, host)
        with await ensure_template(plan, config, ledger, say) as template:
            return template.key, template.size
    finally:
        for problem in ledger.release():
            say(f"cannot release {problem}")


@app.command()
def serve(config: ConfigFile = None) -> None:
    """Keep VMs in standby for sandboxes that containerd starts; in the foreground, until SIGTERM or Ctrl-C."""
    import logging

    from kata.shim.pool import Pool

    loaded = _load(config)
    _check_enabled(loaded, standby=True)
    require_root("kata factory serve")
    logging.basicConfig(format="kata: %(message)s", level=logging.WARNING)
    Pool(loaded, loaded.factory.vm_cache_number, say).run()


@app.command()
def status(
    config: ConfigFile = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List the templates, the most recently used first."""
    from kata.runtime.hypervisor.template.store import list_templates

    loaded = _load(config)
    factory = loaded.factory
    listed = list_templates(factory.template_path)
    if json:
        import json as encoder

        found: list[dict[str, Any]] = [
            {
                "key": template.key,
                "accelerator": template.vm.get("accelerator"),
                "vcpus": template.vm.get("vcpus"),
                "memory_mib": template.vm.get("memory_mib"),
                "domain": template.domain,
                "bytes": template.size,
                "used": int(template.used),
                "problem": template.problem or None,
            }
            for template in listed
        ]
        print(encoder.dumps(found, indent=2))
        return
    if not loaded.uses_templates:
        say("templates are disabled in the configuration")
    heading = ("TEMPLATE", "VCPUS", "MEMORY", "ACCELERATOR", "SIZE", "USED", "DOMAIN")
    rows = [
        (
            template.key,
            str(template.vm.get("vcpus", "")),
            f"{template.vm['memory_mib']} MiB" if template.vm else "",
            str(template.vm.get("accelerator", "")),
            f"{template.size / 1e6:.0f} MB",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(template.used)),
            template.domain or "-",
        )
        for template in listed
    ]
    print(table([heading, *rows]), end="")
    for template in listed:
        if template.problem:
            say(template.problem)


@app.command()
def destroy(config: ConfigFile = None) -> None:
    """Remove all templates. Running sandboxes are not affected; the next start makes a new template."""
    import asyncio

    root = _load(config).factory.template_path
    for key in asyncio.run(_destroy(root)) if root.exists() else ():
        print(key)


async def _destroy(root: Path) -> list[str]:
    from kata.runtime.hypervisor.template import store

    async with store.locked(root, _LOCK_TIMEOUT_S):
        return store.destroy(root)


def _load(path: Path | None) -> Config:
    loaded = load(path)
    for warning in loaded.warnings:
        warn(warning)
    return loaded.config


def _check_enabled(config: Config, *, standby: bool = False) -> None:
    factory = config.factory
    if config.hypervisor.enable_hugepages:
        raise FailedPrecondition(
            "a VM on huge pages is not restored from a template",
            hint="set enable_hugepages to false in [hypervisor.qemu] of the configuration",
        )
    if standby and not (factory.enable_template and factory.vm_cache_number):
        raise FailedPrecondition(
            "standby is disabled",
            hint="set enable_template = true and vm_cache_number to 1 or more in [factory] of the configuration",
        )
    if not factory.enable_template:
        raise FailedPrecondition(
            "templates are disabled", hint="set enable_template = true in [factory] of the configuration"
        )
