"""The accelerator of a VM: KVM where it runs the guest, emulation (TCG) elsewhere, and the reason in words.

That `/dev/kvm` opens proves little, so the guest kernel is booted once (`kata.runtime.hypervisor.trial_boot`). The
outcome is cached until the host, the VMM or the guest kernel changes.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata.architecture import HOST, Architecture
from kata.errors import FailedPrecondition, InvalidArgument
from kata.linux import atomic_file
from kata.runtime.config.settings import HypervisorConfig
from kata.runtime.hypervisor import kvm
from kata.runtime.ledger.journal import STATE_ROOT, make_directory

CACHE = Path(STATE_ROOT, "accel.json")
#: Seconds for which a failed boot counts: the host may just have been busy.
_FAILURE_LIFETIME_S = 600.0
_REQUESTS = ("auto", "kvm", "tcg")


@dataclass(frozen=True)
class Accelerator:
    """What runs the guest.

    Attributes:
        name: "kvm" or "tcg".
        reason: why, in one sentence for the user.
    """

    name: str
    reason: str


def known(
    requested: str,
    *,
    require_kvm: bool,
    vmm: Path,
    kernel: Path,
    initrd: Path,
    cache: Path = CACHE,
    architecture: Architecture = HOST,
    pvm_guest: bool = False,
) -> Accelerator | None:
    """Decide which accelerator a VM gets; None if that takes a trial boot, which `choose` does.

    Args:
        requested: "kvm" fails without KVM, "tcg" does not use it, "auto" uses it where it works.
        require_kvm: whether "auto" fails without KVM, too.
        vmm: the VMM's executable.
        kernel: of the guest.
        initrd: of the guest.
        cache: the file with the outcome of the trial boot.
        architecture: of the guest.
        pvm_guest: whether the kernel is made for a KVM without hardware virtualization.

    Raises:
        InvalidArgument: `requested` is none of these, or contradicts `require_kvm`.
        FailedPrecondition: KVM is required and does not work.
    """
    if requested not in _REQUESTS:
        raise InvalidArgument(f"invalid accelerator {requested!r} ({', '.join(_REQUESTS)})")
    if requested == "tcg":
        if require_kvm:
            raise InvalidArgument(
                "accelerator tcg contradicts require_kvm", hint="set accelerator to auto, or require_kvm to false"
            )
        return Accelerator("tcg", "configured")
    obstacle = (
        kvm.obstacle(pvm_guest=pvm_guest)
        if architecture is HOST
        else f"this host's CPU does not run {architecture.name} guests"
    )
    if obstacle is None:
        obstacle = _recall(cache, _key("kvm", vmm, kernel, initrd))
        if obstacle is None:
            return None
    return _verdict(obstacle, required=requested == "kvm" or require_kvm)


def _verdict(obstacle: str, *, required: bool) -> Accelerator:
    """The accelerator, given what prevents KVM; "" for nothing.

    Raises:
        FailedPrecondition: KVM is required and something prevents it.
    """
    if not obstacle:
        return Accelerator("kvm", "the guest kernel boots under KVM")
    if required:
        raise FailedPrecondition(
            f"KVM does not work here: {obstacle}",
            hint="enable virtualization on this host, or set accelerator to auto and require_kvm to false",
        )
    return Accelerator("tcg", obstacle)


async def choose(
    requested: str,
    *,
    require_kvm: bool,
    vmm: Path,
    kernel: Path,
    initrd: Path,
    cache: Path = CACHE,
    architecture: Architecture = HOST,
    pvm_guest: bool = False,
) -> Accelerator:
    """Decide as `known` does, with a trial boot if no outcome is cached.

    Args:
        requested: as for `known`, like all that follow.
        require_kvm: whether "auto" fails without KVM, too.
        vmm: the VMM's executable.
        kernel: of the guest.
        initrd: of the guest.
        cache: the file with the outcome of the trial boot.
        architecture: of the guest.
        pvm_guest: as for `known`.

    Raises:
        InvalidArgument, FailedPrecondition: as `known`.
        NotFound: VMM, kernel or initrd does not exist.
    """
    paths = {"vmm": vmm, "kernel": kernel, "initrd": initrd, "cache": cache}
    found = known(requested, require_kvm=require_kvm, architecture=architecture, pvm_guest=pvm_guest, **paths)
    if found is None:
        # Rarely needed, and slow to import.
        from kata.runtime.hypervisor import trial_boot

        obstacle = await trial_boot.probe("kvm", vmm=vmm, kernel=kernel, initrd=initrd) or ""
        _remember(cache, _key("kvm", vmm, kernel, initrd), obstacle)
        found = _verdict(obstacle, required=requested == "kvm" or require_kvm)
    return found


def known_for(hypervisor: HypervisorConfig) -> Accelerator | None:
    """Decide by the configuration; raises as `known`."""
    return known(hypervisor.accelerator, **_arguments(hypervisor))


async def choose_for(hypervisor: HypervisorConfig) -> Accelerator:
    """Decide by the configuration; raises as `choose`."""
    return await choose(hypervisor.accelerator, **_arguments(hypervisor))


def _arguments(hypervisor: HypervisorConfig) -> dict[str, Any]:
    return {
        "require_kvm": hypervisor.require_kvm,
        "vmm": hypervisor.path,
        "kernel": hypervisor.kernel,
        "initrd": hypervisor.initrd,
        "architecture": hypervisor.architecture,
        "pvm_guest": hypervisor.pvm_guest,
    }


def _key(name: str, vmm: Path, kernel: Path, initrd: Path) -> dict[str, object]:
    """What the outcome depends on."""
    identity: dict[str, object] = {
        "accelerator": name,
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
    }
    for what, path in (("vmm", vmm), ("kernel", kernel), ("initrd", initrd)):
        try:
            info = path.stat()
            identity[what] = [str(path.resolve()), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns]
        except OSError:
            identity[what] = [str(path)]  # whoever opens the file reports it
    return identity


def _recall(cache: Path, key: dict[str, object]) -> str | None:
    """The cached outcome: "" for a boot that worked, the reason for one that did not; None if there is none."""
    try:
        entry = json.loads(cache.read_bytes())
        obstacle, expires = entry["obstacle"], entry["expires"]
        if entry["key"] != key or not isinstance(obstacle, str):
            return None
        return obstacle if not obstacle or time.clock_gettime(time.CLOCK_BOOTTIME) < expires else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(cache: Path, key: dict[str, object], obstacle: str) -> None:
    """Cache the outcome. Without a cache, the next start boots again."""
    expires = time.clock_gettime(time.CLOCK_BOOTTIME) + _FAILURE_LIFETIME_S
    try:
        make_directory(str(cache.parent))
        atomic_file.write(cache, json.dumps({"key": key, "obstacle": obstacle, "expires": expires}))
    except OSError:
        return
