"""A boot of the real guest kernel under an accelerator, to see it live: no other proof is good enough."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from kata.errors import KataError
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.qemu.vm import QemuVm, check_files

#: On the kernel command line: the guest's init says PROBE_ANSWER on the console and powers off.
PROBE_PARAMETER = "kata.probe"
PROBE_ANSWER = "kata-probe-ok"
#: Seconds for a probe under KVM, where the boot takes under one.
PROBE_TIMEOUT_S = 15.0


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
        machine = QemuVm(plan)
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


def _last(machine: QemuVm) -> str:
    line = machine.console_tail(1)
    return f", its last line: {line}" if line else ", it said nothing"
