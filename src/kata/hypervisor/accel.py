"""KVM where it really runs the guest, the emulator elsewhere, and the reason in words.

`/dev/kvm` opening proves little: the verdict rests on a boot of the real guest kernel. That boot is done once and
remembered until the host, QEMU or the guest kernel changes.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from kata.config.settings import HypervisorConfig
from kata.errors import FailedPrecondition, InvalidArgument, KataError
from kata.hypervisor import kvm
from kata.hypervisor.base import VmPlan
from kata.hypervisor.qemu.machine import QemuMachine, check_files

CACHE = Path("/run/kata/accel.json")
#: On the kernel command line: the guest's init says PROBE_ANSWER on the console and powers off.
PROBE_PARAMETER = "kata.probe"
PROBE_ANSWER = "kata-probe-ok"
#: Seconds for a probe under KVM, where the boot takes under one.
PROBE_TIMEOUT_S = 15.0
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


async def choose(
    requested: str,
    *,
    require_kvm: bool,
    qemu: Path,
    kernel: Path,
    initrd: Path,
    cache: Path = CACHE,
    timeout: float = PROBE_TIMEOUT_S,
) -> Accelerator:
    """Decide which accelerator a machine gets.

    Args:
        requested: "kvm" insists, "tcg" does not even look, "auto" takes KVM where it works.
        require_kvm: "auto" insists too.
        cache: where the outcome of the trial boot is kept.
        timeout: seconds for that boot.

    Raises:
        InvalidArgument: `requested` is none of these, or contradicts `require_kvm`.
        FailedPrecondition: KVM is insisted on and does not work here.
        NotFound: QEMU, kernel or initrd is not there.
    """
    if requested not in _REQUESTS:
        raise InvalidArgument(f"accelerator {requested!r} is not one of {', '.join(_REQUESTS)}")
    if requested == "tcg":
        if require_kvm:
            raise InvalidArgument(
                "accelerator tcg contradicts require_kvm", hint="set accelerator to auto, or require_kvm to false"
            )
        return Accelerator("tcg", "asked for")
    obstacle = kvm.obstacle() or await _trial("kvm", qemu, kernel, initrd, cache, timeout)
    if obstacle is None:
        return Accelerator("kvm", "the guest kernel boots under KVM")
    if requested == "kvm" or require_kvm:
        raise FailedPrecondition(
            f"KVM does not work here: {obstacle}",
            hint="enable virtualization on this host, or set accelerator to auto and require_kvm to false",
        )
    return Accelerator("tcg", obstacle)


async def choose_for(hypervisor: HypervisorConfig) -> Accelerator:
    """Decide as the configuration asks; see `choose`."""
    return await choose(
        hypervisor.accelerator,
        require_kvm=hypervisor.require_kvm,
        qemu=hypervisor.path,
        kernel=hypervisor.kernel,
        initrd=hypervisor.initrd,
    )


async def _trial(name: str, qemu: Path, kernel: Path, initrd: Path, cache: Path, timeout: float) -> str | None:
    """The outcome of `probe`, from the cache if it is there."""
    key = _key(name, qemu, kernel, initrd)
    known = _recall(cache, key)
    if known is not None:
        return known or None
    obstacle = await probe(name, qemu=qemu, kernel=kernel, initrd=initrd, timeout=timeout)
    _remember(cache, key, obstacle)
    return obstacle


async def probe(name: str, *, qemu: Path, kernel: Path, initrd: Path, timeout: float = PROBE_TIMEOUT_S) -> str | None:
    """Boot the guest kernel under an accelerator to see it live.

    Returns:
        None if the guest said PROBE_ANSWER and powered off, else what went wrong, in one sentence.

    Raises:
        NotFound: QEMU, kernel or initrd is not there.
    """
    with tempfile.TemporaryDirectory(prefix="kata-probe-") as directory:
        plan = VmPlan(
            sandbox_id="probe",
            run_dir=Path(directory),
            qemu=qemu,
            accelerator=name,
            kernel=kernel,
            initrd=initrd,
            kernel_params=(PROBE_PARAMETER,),
        )
        check_files(plan)
        machine = QemuMachine(plan)
        try:
            await machine.start(timeout)
            async with asyncio.timeout(timeout):
                exit_ = await machine.wait()
        except KataError as error:
            return f"the guest kernel does not boot under {name}: {error.message}"
        except TimeoutError:
            return f"the guest kernel did not finish a boot under {name} within {timeout:.0f} s{_last(machine)}"
        finally:
            await machine.stop(0)
        if PROBE_ANSWER not in machine.console_tail(100):
            return f"the guest kernel died under {name} (qemu status {exit_.status}){_last(machine)}"
        return None


def _last(machine: QemuMachine) -> str:
    line = machine.console_tail(1)
    return f", its last line: {line}" if line else ", it said nothing"


def _key(name: str, qemu: Path, kernel: Path, initrd: Path) -> dict[str, object]:
    """What the outcome depends on."""
    identity: dict[str, object] = {
        "accelerator": name,
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
    }
    for what, path in (("qemu", qemu), ("kernel", kernel), ("initrd", initrd)):
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


def _remember(cache: Path, key: dict[str, object], obstacle: str | None) -> None:
    """Write the outcome so that a reader sees all of it or nothing. What cannot be written is found out again."""
    expires = time.clock_gettime(time.CLOCK_BOOTTIME) + _FAILURE_LIFETIME_S
    data = json.dumps({"key": key, "obstacle": obstacle or "", "expires": expires}).encode()
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError:
        return
    try:
        temporary.write_bytes(data)
        os.replace(temporary, cache)
    except OSError:
        temporary.unlink(missing_ok=True)
