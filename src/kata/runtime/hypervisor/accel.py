"""KVM where it really runs the guest, the emulator elsewhere, and the reason in words.

`/dev/kvm` opening proves little: the verdict rests on a boot of the real guest kernel. That boot is done once and
remembered until the host, the VMM or the guest kernel changes (`kata.runtime.hypervisor.trial_boot`).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata.errors import FailedPrecondition, InvalidArgument
from kata.linux import atomic_file
from kata.runtime.config.settings import HypervisorConfig
from kata.runtime.hypervisor import kvm

CACHE = Path("/run/kata/accel.json")
#: Seconds for which a failed boot is believed: the host may just have been busy.
_FAILURE_LIFETIME_S = 600.0
_REQUESTS = ("auto", "kvm", "tcg")


@dataclass(frozen=True)
class Accelerator:
    """What runs the guest.

    Attributes:
        name: "kvm" or "tcg".
        reason: why, in one sentence for people.
    """

    name: str
    reason: str


def known(
    requested: str, *, require_kvm: bool, vmm: Path, kernel: Path, initrd: Path, cache: Path = CACHE
) -> Accelerator | None:
    """Decide which accelerator a machine gets; None if only a trial boot can tell, which `choose` does.

    Args:
        requested: "kvm" insists, "tcg" does not even look, "auto" takes KVM where it works.
        require_kvm: "auto" insists too.
        cache: where the outcome of the trial boot is kept.

    Raises:
        InvalidArgument: `requested` is none of these, or contradicts `require_kvm`.
        FailedPrecondition: KVM is insisted on and does not work here.
    """
    if requested not in _REQUESTS:
        raise InvalidArgument(f"accelerator {requested!r} is not one of {', '.join(_REQUESTS)}")
    if requested == "tcg":
        if require_kvm:
            raise InvalidArgument(
                "accelerator tcg contradicts require_kvm", hint="set accelerator to auto, or require_kvm to false"
            )
        return Accelerator("tcg", "asked for")
    obstacle = kvm.obstacle()
    if obstacle is None:
        obstacle = _recall(cache, _key("kvm", vmm, kernel, initrd))
        if obstacle is None:
            return None
    return _verdict(obstacle, insisted=requested == "kvm" or require_kvm)


def _verdict(obstacle: str, *, insisted: bool) -> Accelerator:
    """What an obstacle to KVM, or none (""), means."""
    if not obstacle:
        return Accelerator("kvm", "the guest kernel boots under KVM")
    if insisted:
        raise FailedPrecondition(
            f"KVM does not work here: {obstacle}",
            hint="enable virtualization on this host, or set accelerator to auto and require_kvm to false",
        )
    return Accelerator("tcg", obstacle)


async def choose(
    requested: str, *, require_kvm: bool, vmm: Path, kernel: Path, initrd: Path, cache: Path = CACHE
) -> Accelerator:
    """Decide as `known` does, with a trial boot if there has been none.

    Raises:
        NotFound: VMM, kernel or initrd is not there.
    """
    found = known(requested, require_kvm=require_kvm, vmm=vmm, kernel=kernel, initrd=initrd, cache=cache)
    if found is None:
        # Rarely needed, and slow to import.
        from kata.runtime.hypervisor import trial_boot

        obstacle = await trial_boot.probe("kvm", vmm=vmm, kernel=kernel, initrd=initrd) or ""
        _remember(cache, _key("kvm", vmm, kernel, initrd), obstacle)
        found = _verdict(obstacle, insisted=requested == "kvm" or require_kvm)
    return found


def known_for(hypervisor: HypervisorConfig) -> Accelerator | None:
    """Decide as the configuration asks; see `known`."""
    return known(hypervisor.accelerator, **_arguments(hypervisor))


async def choose_for(hypervisor: HypervisorConfig) -> Accelerator:
    """Decide as the configuration asks; see `choose`."""
    return await choose(hypervisor.accelerator, **_arguments(hypervisor))


def _arguments(hypervisor: HypervisorConfig) -> dict[str, Any]:
    return {
        "require_kvm": hypervisor.require_kvm,
        "vmm": hypervisor.path,
        "kernel": hypervisor.kernel,
        "initrd": hypervisor.initrd,
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
            identity[what] = [str(path)]  # reported by whoever needs the file
    return identity


def _recall(cache: Path, key: dict[str, object]) -> str | None:
    """ "" for a boot that worked, a sentence for one that did not, None if nothing (useful) is remembered."""
    try:
        entry = json.loads(cache.read_bytes())
        obstacle, expires = entry["obstacle"], entry["expires"]
        if entry["key"] != key or not isinstance(obstacle, str):
            return None
        return obstacle if not obstacle or time.clock_gettime(time.CLOCK_BOOTTIME) < expires else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(cache: Path, key: dict[str, object], obstacle: str) -> None:
    """Write the outcome down. What cannot be written is found out again."""
    expires = time.clock_gettime(time.CLOCK_BOOTTIME) + _FAILURE_LIFETIME_S
    try:
        cache.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        atomic_file.write(cache, json.dumps({"key": key, "obstacle": obstacle, "expires": expires}))
    except OSError:
        return
