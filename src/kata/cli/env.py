"""`kata env`: versions, paths and settings for a bug report, with the sections and names of Kata's `kata-env`."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kata.architecture import HOST
from kata.cli import host
from kata.cli.options import AsJson, ConfigFile
from kata.cli.output import written
from kata.cli.render import ExitCode
from kata.errors import KataError
from kata.oci.state import OCI_VERSION
from kata.osbuilder import store
from kata.runtime.config.loader import load
from kata.runtime.resources.status import Status, read_all
from kata.version import VERSION

#: Version of the output's format. Kata's own is at 1.0.27.
FORMAT_VERSION = "1.1.0"


def command(
    config: ConfigFile = None,
    as_json: AsJson = False,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", metavar="FILE", help="Write there.", show_default=False)
    ] = None,
) -> int:
    """Print versions, paths and settings for a bug report."""
    import tomli_w

    sections = collect(config)
    text = json.dumps(sections, indent=2) + "\n" if as_json else tomli_w.dumps(sections)
    with written(file) as out:
        out.write(text)
    return ExitCode.OK


def collect(config_path: Path | None = None) -> dict[str, Any]:
    """Return all sections, in order.

    Raises:
        KataError: the configuration cannot be read.
    """
    loaded = load(config_path)
    hypervisor, agent, runtime = loaded.config.hypervisor, loaded.config.agent, loaded.config.runtime
    name, reason = _accelerator(loaded.config.hypervisor)
    version = host.qemu_version(hypervisor.path)
    distribution, distribution_version = host.distribution()
    vendor, model = host.cpu()
    memory = host.memory()
    major, minor, patch = (int(number) for number in re.findall(r"\d+", VERSION)[:3])
    return {
        "Meta": {"Version": FORMAT_VERSION},
        "Runtime": {
            "Path": os.path.realpath(sys.argv[0]),
            "Python": sys.version.split()[0],
            "Debug": runtime.enable_debug,
            "Trace": runtime.enable_tracing,
            "DisableGuestSeccomp": runtime.disable_guest_seccomp,
            "DisableNewNetNs": False,
            "SandboxCgroupOnly": runtime.sandbox_cgroup_only,
            "Experimental": [],
            "Version": {
                "OCI": OCI_VERSION,
                "Version": {"Semver": VERSION, "Commit": "", "Major": major, "Minor": minor, "Patch": patch},
            },
            "Config": {"Path": str(loaded.sources[0]) if loaded.sources else ""},
        },
        "Hypervisor": {
            "Path": str(hypervisor.path),
            "Version": version,
            "MachineType": hypervisor.machine_type,
            "BlockDeviceDriver": hypervisor.block_device_driver,
            "EntropySource": "",
            "SharedFS": hypervisor.shared_fs,
            "VirtioFSDaemon": hypervisor.virtio_fs_daemon or str(hypervisor.host_programs / "virtiofsd"),
            "SocketPath": "",
            "MemorySlots": hypervisor.memory_slots,
            "PCIeRootPort": hypervisor.pcie_root_port,
            "HotplugVFIOOnRootBus": False,
            "Msize9p": hypervisor.msize_9p,
            "Seccomp": hypervisor.seccompsandbox,
            "Debug": hypervisor.enable_debug,
            "Accelerator": {"Name": name, "Reason": reason},
        },
        "Kernel": {"Path": _real(hypervisor.kernel), "Parameters": hypervisor.kernel_params},
        "Image": {"Path": _real(hypervisor.image) if hypervisor.image else "", "Version": _image_version()},
        "Initrd": {"Path": _real(hypervisor.initrd)},
        "Host": {
            "Kernel": host.kernel_release(),
            "Architecture": HOST.name if os.uname().machine == HOST.machine else os.uname().machine,
            "VMContainerCapable": bool(name and version),
            "SupportVSocks": host.has_vsock(),
            "Distro": {"Name": distribution, "Version": distribution_version},
            "CPU": {"Vendor": vendor, "Model": model, "CPUs": os.cpu_count() or 0},
            "Memory": {
                "Total": memory["MemTotal"],
                "Free": memory["MemFree"],
                "Available": memory["MemAvailable"],
            },
        },
        "Agent": {
            "Debug": agent.enable_debug,
            "Trace": agent.enable_tracing,
            "DebugConsole": agent.debug_console_enabled,
        },
        "Sandboxes": _sandboxes(read_all()),
    }


def _sandboxes(running: Sequence[Status]) -> dict[str, int]:
    """Return how many sandboxes run, and the vCPUs and memory of all their VMs."""
    return {
        "Running": len(running),
        "VCPUs": sum(status.size.vcpus for status in running),
        "MemoryMiB": sum(status.size.memory_mib for status in running),
    }


def _accelerator(hypervisor: Any) -> tuple[str, str]:
    import asyncio

    from kata.runtime.hypervisor import accel

    try:
        chosen = asyncio.run(accel.choose_for(hypervisor))
    except KataError as error:
        return "", error.message
    return chosen.name, chosen.reason


def _image_version() -> str:
    try:
        return store.find().version
    except KataError:
        return ""


def _real(path: Path) -> str:
    return str(path.resolve())
