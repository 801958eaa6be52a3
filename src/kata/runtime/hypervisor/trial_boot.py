"""A boot of the guest kernel under an accelerator: the only proof that it works."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from kata.errors import KataError, NotFound
from kata.runtime.hypervisor import factory
from kata.runtime.hypervisor.base import VirtualMachine, VmPlan

#: Kernel parameter: the guest's init prints PROBE_ANSWER on the console and powers off.
PROBE_PARAMETER = "kata.probe"
PROBE_ANSWER = "kata-probe-ok"
#: Seconds for the boot, which takes less than one under KVM.
PROBE_TIMEOUT_S = 15.0


async def probe(name: str, *, vmm: Path, kernel: Path, initrd: Path, timeout: float = PROBE_TIMEOUT_S) -> str | None:
    """Boot the guest kernel under an accelerator.

    Args:
        name: "kvm" or "tcg".
        vmm: the VMM's executable.
        kernel: of the guest.
        initrd: of the guest.
        timeout: seconds.

    Returns:
        None if the guest printed PROBE_ANSWER and powered off, else what went wrong, in one sentence.

    Raises:
        NotFound: VMM, kernel or initrd does not exist.
    """
    with tempfile.TemporaryDirectory(prefix="kata-probe-") as directory:
        plan = VmPlan(
            sandbox_id="probe",
            run_dir=Path(directory),
            vmm=vmm,
            accelerator=name,
            kernel=kernel,
            initrd=initrd,
            kernel_params=(PROBE_PARAMETER,),
        )
        vm = factory.create(plan)
        try:
            await vm.start(timeout)
            async with asyncio.timeout(timeout):
                exit_ = await vm.wait()
        except NotFound:
            raise
        except KataError as error:
            return f"the guest kernel does not boot under {name}: {error.message}"
        except TimeoutError:
            return f"the guest kernel did not finish a boot under {name} within {timeout:.0f} s{_last(vm)}"
        finally:
            await vm.stop(0)
        if PROBE_ANSWER not in vm.console_tail(100):
            return f"the guest kernel died under {name} (VMM status {exit_.status}){_last(vm)}"
        return None


def _last(vm: VirtualMachine) -> str:
    line = vm.console_tail(1)
    return f", its last line: {line}" if line else ", without any output"
