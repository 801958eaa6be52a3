"""What runs in level 1: this project, on a host that has an IOMMU. Prints one JSON object a line.

Argument "nvme": a sandbox whose kernel drives an NVMe disk. Argument "edu": a container drives QEMU's `edu` device.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from kata.config.settings import Config
from kata.oci.default import default_spec
from kata.oci.spec import Bundle
from kata.sandbox.isolation import enter_mount_namespace
from kata.sandbox.ledger import STATE_ROOT, claim
from kata.sandbox.sandbox import ContainerRequest, Sandbox
from kata.sandbox.stdio import FdSink, Stdio

WORK = Path("/mnt")
NVME, EDU = "0000:01:00.0", "0000:02:00.0"
READ = "dd if=/dev/nvme0n1 bs=512 count=1 2>/dev/null | head -c 21; echo"
WRITE = "echo hello-from-level-2 | dd of=/dev/nvme0n1 bs=512 seek=1 conv=sync,fsync 2>/dev/null"
PROBE = 'ls /dev/vfio; for group in /dev/vfio/[0-9]*; do /vfio_read $group "$PCIDEVICE_EDU"; done'


def tell(**facts: object) -> None:
    print(json.dumps({"at": round(time.monotonic(), 1), **facts}), flush=True)  # noqa: T201


def bind(address: str) -> int:
    """Bind a device to vfio-pci, as an administrator does; its group."""
    device = Path("/sys/bus/pci/devices", address)
    (device / "driver_override").write_text("vfio-pci")
    Path("/sys/bus/pci/drivers_probe").write_text(address)
    return int((device / "iommu_group").resolve().name)


def configuration(mode: str) -> Config:
    config = Config()
    params = "agent.hotplug_timeout=200s tsc=unstable mitigations=off nokaslr"
    hypervisor = replace(config.hypervisor, accelerator="tcg", default_memory=320, kernel_params=params)
    agent = replace(config.agent, dial_timeout=900)
    runtime = replace(config.runtime, vfio_mode=mode, create_container_timeout=600)
    return replace(
        config,
        hypervisor=hypervisor,
        agent=agent,
        runtime=runtime,
        factory=replace(config.factory, enable_template=False),
    )


def spec_with(groups: list[int], script: str, environment: list[str]) -> Any:
    spec: Any = default_spec(["/bin/sh", "-c", script], rootfs=str(WORK / "rootfs"), hostname="nested")
    spec["process"]["env"] = ["PATH=/bin", *environment]
    spec["linux"]["devices"] = [{"path": "/dev/vfio/vfio", "type": "c", "major": 10, "minor": 196, "fileMode": 0o666}]
    for group in groups:
        number = os.stat(f"/dev/vfio/{group}").st_rdev
        numbers = {"type": "c", "major": os.major(number), "minor": os.minor(number)}
        spec["linux"]["devices"].append({"path": f"/dev/vfio/{group}", **numbers, "fileMode": 0o600})
        spec["linux"]["resources"]["devices"].append({"allow": True, **numbers, "access": "rwm"})
    rule = {"allow": True, "type": "c", "major": 10, "minor": 196, "access": "rwm"}
    spec["linux"]["resources"]["devices"].append(rule)
    return spec


async def run(name: str, mode: str, groups: list[int], script: str, environment: list[str]) -> None:
    """One sandbox with one container, to the end."""
    output = os.open(f"/tmp/{name}", os.O_RDWR | os.O_CREAT, 0o600)
    bundle = Bundle(WORK, spec_with(groups, script, environment), WORK / "rootfs")
    ledger = claim(f"{STATE_ROOT}/{name}")
    begun = time.monotonic()
    watching = asyncio.create_task(show_console(name))
    sandbox = await Sandbox.start(name, bundle, configuration(mode), ledger)
    tell(step="sandbox", name=name, seconds=round(time.monotonic() - begun, 1))
    try:
        stdio = Stdio(stdout=FdSink(os.dup(output)), stderr=FdSink(os.dup(output)))
        container = await sandbox.create_container(ContainerRequest(name, bundle, stdio))
        tell(step="created", name=name, seconds=round(time.monotonic() - begun, 1))
        await container.start()
        status = (await container.wait()).status
    finally:
        watching.cancel()
        problems = await sandbox.stop()
    tell(
        step="ended",
        name=name,
        status=status,
        output=Path(f"/tmp/{name}").read_text(),
        problems=problems,
        seconds=round(time.monotonic() - begun, 1),
    )


async def show_console(name: str) -> None:
    """Keep a copy of the guest's console where level 0 sees it: this machine's own files end with it."""
    source = Path(STATE_ROOT, name, "console.log")
    while True:
        if source.exists():
            (WORK / f"console-{name}").write_bytes(source.read_bytes())
        await asyncio.sleep(5)


def reusable(group: int) -> bool:
    """Whether the host can open a group again."""
    os.close(os.open(f"/dev/vfio/{group}", os.O_RDWR))
    return True


async def main(case: str) -> None:
    groups = {address: bind(address) for address in (NVME, EDU)}
    tell(step="bound", groups=groups)
    if case == "nvme":
        await run(case, "guest-kernel", [groups[NVME]], f"{READ}; {WRITE}; ls /dev/vfio 2>&1", [])
    else:
        await run(case, "vfio", [groups[EDU]], PROBE, [f"PCIDEVICE_EDU={EDU}"])
    tell(step="back", free=reusable(groups[NVME if case == "nvme" else EDU]))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(relativeCreated)d %(name)s %(message)s")
    os.makedirs(STATE_ROOT, exist_ok=True)
    enter_mount_namespace(STATE_ROOT)
    asyncio.run(main(sys.argv[1]))
