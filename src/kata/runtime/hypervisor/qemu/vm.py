"""One VM run by QEMU: booted or restored, watched, paused, saved, ended.

One task waits for the end of the process, reaps it and releases everything that the VM held; `wait` and `stop` wait for
that task.

Not here: how the process is started (`kata.runtime.hypervisor.qemu.process`), and whether the guest's agent answers.

References: qemu-qmp-ref(7); QEMU's docs/devel/migration.rst.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kata.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    KataError,
    NotFound,
    Unavailable,
    VmLaunchError,
)
from kata.protocols.shared_tree import TAG
from kata.runtime.hypervisor.base import Resized, VmExit, VmPlan, how_it_ended
from kata.runtime.hypervisor.console import Pump, RingFile
from kata.runtime.hypervisor.deadline import before_deadline
from kata.runtime.hypervisor.devices import Device, VfioDevice
from kata.runtime.hypervisor.kernel_end import CONSOLE_LINES, why_kernel_ended
from kata.runtime.hypervisor.qemu import confine, jail, slots
from kata.runtime.hypervisor.qemu.apart import thread_ids
from kata.runtime.hypervisor.qemu.command import (
    MAPS_READ_ONLY_SINCE,
    QMP_FD,
    RESTORE_FD,
    SHARE_CHARDEV,
    STATE_FDSET,
    empty_disk_name,
)
from kata.runtime.hypervisor.qemu.device_commands import Command, FileSystemDevice
from kata.runtime.hypervisor.qemu.process import QemuProcess, restore_commands

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

    from kata.runtime.hypervisor.qemu.hotplug import Hotplug
    from kata.runtime.hypervisor.qemu.resize import Resizer

log = logging.getLogger(__name__)

CONSOLE_LOG = "console.log"
QEMU_LOG = "qemu.log"

#: Seconds by which QEMU may outlive its helper when both end.
_HELPER_GRACE_S = 0.2
#: Seconds from QEMU's start until it takes commands.
START_TIMEOUT_S = 20.0
#: Seconds for a command that QEMU answers at once.
_QMP_TIMEOUT_S = 5.0
#: Seconds to end QEMU before it is killed.
STOP_TIMEOUT_S = 2.0
#: Seconds for the guest to release a device; 0.2 is usual.
UNPLUG_TIMEOUT_S = 10.0
#: Seconds for the guest to release vCPUs and memory.
RESIZE_TIMEOUT_S = 5.0
#: Seconds for the kernel to end a process after SIGKILL.
_KILL_TIMEOUT_S = 10.0
#: Seconds to read the rest of the output after the process has ended: it is in a pipe already.
_DRAIN_TIMEOUT_S = 1.0
#: Lines of output and console in a message.
_LAST_LINES = 3
#: Seconds between two looks at the status of a save, which takes 10 to 50 ms.
_STATUS_POLL_S = 0.005


class QemuVm:
    """A VM run by QEMU. Implements `kata.runtime.hypervisor.base.VirtualMachine`.

    Args:
        plan: the VM.
        memory: descriptor of a file for the guest's memory, for `save`; with `state`, of a saved VM's memory, which is
            only read.
        state: descriptor of what `save` wrote, to restore the VM from.
        process: the VM's process, if it was started already with the same plan and descriptors.

    The descriptors stay the caller's, who has to keep them open until `start` returns.
    """

    def __init__(
        self,
        plan: VmPlan,
        *,
        memory: int | None = None,
        state: int | None = None,
        process: QemuProcess | None = None,
    ) -> None:
        self.plan = plan
        self._prelaunch = process
        self._memory = memory
        self._state = state
        self._pid = 0
        self._expected = False
        self._forced = False
        self._why_ended = ""
        self._failing = False
        self._up = False
        self._begin = 0.0
        self._process: QemuProcess | None = None
        self._end: asyncio.Task[VmExit] | None = None
        self._qmp: QMPClient | None = None
        self._console: RingFile | None = None
        self._output: RingFile | None = None
        self._pumps: list[Pump] = []
        self._hotplug: Hotplug | None = None
        self._resizer: Resizer | None = None
        self._one_by_one = asyncio.Lock()

    @property
    def pid(self) -> int:
        """QEMU's process id; 0 unless it runs."""
        return self._pid

    @property
    def share_pid(self) -> int:
        """Implements `VirtualMachine.share_pid`."""
        helpers = self._process.helpers if self._pid and self._process else []
        return helpers[0].pid if helpers else 0

    @property
    def is_failing(self) -> bool:
        """Implements `VirtualMachine.is_failing`."""
        return self._failing

    @property
    def why_ended(self) -> str:
        """Implements `VirtualMachine.why_ended`."""
        return self._why_ended

    @property
    def console(self) -> Path:
        """Implements `VirtualMachine.console`."""
        return self.plan.run_dir / CONSOLE_LOG

    async def start(self, timeout: float = START_TIMEOUT_S) -> None:
        """Implements `VirtualMachine.start`: QEMU takes commands once its QMP monitor answers.

        Raises:
            FailedPrecondition: the VM was started before.
            NotFound: a file or directory of the plan does not exist.
            InvalidArgument: the kernel command line is too long.
            VmLaunchError: QEMU ended or does not answer; with its last words and the guest's.
        """
        if self._end is not None or self._process is not None:
            raise FailedPrecondition(f"the VM of {self.plan.sandbox_id} was started before")
        self._begin = time.monotonic()
        try:
            self._watch_process(self._prelaunch or self._spawn())
            await before_deadline(f"qemu of {self.plan.sandbox_id}", self._up_or_ended(), timeout, self._pid)
            self._up = True
        except BaseException as error:
            exit_ = await asyncio.shield(asyncio.ensure_future(self._abandon()))
            if isinstance(error, (NotFound, InvalidArgument)) or not isinstance(error, Exception):
                raise
            if isinstance(error, OSError):
                reason = error.strerror or str(error)
            elif not self._forced:
                reason = "qemu ended by itself"
            else:
                reason = error.message if isinstance(error, KataError) else "qemu does not take commands"
            raise VmLaunchError(
                "qemu start",
                reason,
                elapsed=time.monotonic() - self._begin,
                # The status of our own kill says nothing.
                exit_status=exit_.status if exit_ and not self._forced else None,
                output=exit_.output if exit_ else "",
                console=self.console_tail(),
            ) from error

    async def _up_or_ended(self) -> None:
        """Wait until QEMU takes commands, or has ended: its sockets are closed then, and say nothing.

        Raises:
            Unavailable: it has ended.
            KataError, OSError: as `_come_up`.
        """
        assert self._end is not None
        up = asyncio.ensure_future(self._come_up())
        try:
            await asyncio.wait({up, self._end}, return_when=asyncio.FIRST_COMPLETED)
            if not up.done():
                raise Unavailable(f"qemu of {self.plan.sandbox_id} has ended")
            up.result()
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)

    async def _come_up(self) -> None:
        await self._connect()
        if self._state is not None:
            await self._restored()
        if self.plan.shares_memory and not self._to_be_saved:
            if self._state is not None:
                # QEMU has begun to read the state: with a device that is not in it, it would refuse it.
                await self._status_after("query-status", "inmigrate")
            await self._plugging().plug(FileSystemDevice("share0", SHARE_CHARDEV, TAG))

    @property
    def _to_be_saved(self) -> bool:
        return self._memory is not None and self._state is None

    def _spawn(self) -> QemuProcess:
        check_files(self.plan)
        return QemuProcess(self.plan, memory=self._memory, state=self._state)

    def _watch_process(self, process: QemuProcess) -> None:
        """Watch QEMU from here on: when it ends, everything is released."""
        log.debug("qemu command line: %s", process.argv)
        self._process = process
        self._console = RingFile(self.console)
        self._output = RingFile(self.plan.run_dir / QEMU_LOG)
        self._pid = process.popen.pid
        self._pumps.append(Pump(process.console, self._console))
        process.console = -1
        self._pumps.append(Pump(process.output, self._output))
        process.output = -1
        for helper in process.helpers:
            helper.watch(asyncio.get_running_loop(), self._lose_share)
        self._end = asyncio.create_task(self._watch(process), name=f"qemu of {self.plan.sandbox_id}")

    def _lose_share(self) -> None:
        """The helper has ended: by itself, or because QEMU has, whose end is known in a moment then."""
        self._failing = not self._expected
        asyncio.get_running_loop().call_later(_HELPER_GRACE_S, self._end_without_share)

    def _end_without_share(self) -> None:
        """End the VM: without its shared tree it is of no use."""
        helpers = self._process.helpers if self._process else []
        if helpers and self._end is not None and not self._end.done() and not self._expected:
            how = how_it_ended(next(filter(None, (helper.status() for helper in helpers)), 0))
            self._why_ended = (
                f"the server of the shared tree of {self.plan.sandbox_id} {how}, so its VM is ended{self._last_words()}"
            )
            log.error("%s", self._why_ended)
            self._forced = True
            self._signal(signal.SIGKILL)

    def _last_words(self) -> str:
        """What QEMU, its helper and the guest have said last, for the end of a message."""
        said = ""
        for who, ring in (("it said last", self._output), ("the guest's console ends with", self._console)):
            if ring is not None and (lines := ring.tail(_LAST_LINES).strip()):
                said += f"; {who}: {lines}"
        return said

    async def _connect(self) -> None:
        # Imported here, while QEMU starts: the import takes time, which costs nothing here.
        from kata.runtime.hypervisor.qemu import qmp

        assert self._process is not None
        self._qmp = await qmp.connect(self.plan.sandbox_id, self._process.channels[QMP_FD])

    async def _restored(self) -> None:
        """Wait until QEMU reads the state; the VM resumes then.

        QEMU ends if the state is broken, but has been seen to hang: only the guest's answer proves a restore.

        Raises:
            FailedPrecondition: QEMU refuses the state.
        """
        assert self._process is not None
        reader, writer = await asyncio.open_connection(sock=self._process.channels.pop(RESTORE_FD))
        try:
            missing = len(restore_commands(0))
            while missing:
                answer = json.loads(await reader.readline())
                if "error" in answer:
                    raise FailedPrecondition(f"qemu of {self.plan.sandbox_id}: restore: {answer['error'].get('desc')}")
                missing -= "return" in answer
        finally:
            writer.close()

    async def _status_after(self, query: str, *passing: str) -> object:
        """Poll a status until it is none of `passing`; returns it."""
        while True:
            answer = await self._execute(query, _QMP_TIMEOUT_S)
            status = answer.get("status") if isinstance(answer, dict) else None
            if status not in passing:
                return status
            await asyncio.sleep(_STATUS_POLL_S)

    async def _abandon(self) -> VmExit | None:
        self._expected = True
        if self._end is None:
            if self._process is not None:
                self._process.kill()
            self._release()
            return None
        # If QEMU is ending by itself, its own status says more than that of a kill.
        await asyncio.wait({self._end}, timeout=0.2)
        self.kill()
        return await self.wait()

    async def _watch(self, process: QemuProcess) -> VmExit:
        """Wait for QEMU's end, reap it, release everything. A cancellation ends QEMU first."""
        loop = asyncio.get_running_loop()
        dead = asyncio.Event()
        loop.add_reader(process.pidfd, dead.set)
        try:
            await dead.wait()
        except asyncio.CancelledError:
            # The event loop ends: a VM that nobody watches must end, too.
            self.kill()
            await dead.wait()
        by_itself = self._up and not (self._expected or self._forced)
        loop.remove_reader(process.pidfd)
        status = process.popen.wait()
        self._pid = 0
        for pump in self._pumps:
            await pump.ended(_DRAIN_TIMEOUT_S)
        if self._hotplug is not None:
            self._hotplug.close()
        if self._qmp is not None:
            try:
                async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                    await self._qmp.disconnect()
            except Exception as error:
                log.debug("qmp of %s: %s", self.plan.sandbox_id, error)
        self._release()
        exit_ = VmExit(status, self._expected, self._output.tail() if self._output else "")
        if by_itself:
            reason = why_kernel_ended(self.console_tail(CONSOLE_LINES))
            how = f"{exit_.how}: {reason}" if reason else exit_.how
            self._why_ended = f"qemu of {self.plan.sandbox_id} {how}{self._last_words()}"
            log.error("%s", self._why_ended)
        log.debug("qemu of %s ended: %s", self.plan.sandbox_id, exit_)
        return exit_

    def _release(self) -> None:
        """Close everything. Idempotent; the logs stay readable."""
        for pump in self._pumps:
            pump.close()
        if self._process is not None:
            self._process.release()
        for ring in (self._console, self._output):
            if ring is not None:
                ring.close()
        self._pid = 0

    def channel(self, name: str) -> socket.socket:
        """Implements `VirtualMachine.channel`.

        Raises:
            FailedPrecondition: the channel is unknown or was handed over before, or QEMU was never started.
            Unavailable: QEMU has ended.
        """
        if self._end is not None and not self._pid:
            raise Unavailable(f"qemu of {self.plan.sandbox_id} has ended")
        process = self._process
        if process is None or name not in self.plan.channels or name not in process.channels:
            raise FailedPrecondition(f"channel {name} of {self.plan.sandbox_id} is unknown or already in use")
        return process.channels.pop(name)

    async def wait(self) -> VmExit:
        """Implements `VirtualMachine.wait`.

        Raises:
            FailedPrecondition: the VM was never started.
        """
        if self._end is None:
            raise FailedPrecondition(f"the VM of {self.plan.sandbox_id} does not run")
        return await asyncio.shield(self._end)

    async def stop(self, timeout: float = STOP_TIMEOUT_S) -> VmExit | None:
        """Implements `VirtualMachine.stop`: by a command, then SIGTERM, then SIGKILL.

        The command and SIGTERM have half of `timeout` each.

        Raises:
            DeadlineExceeded: QEMU survives SIGKILL.
        """
        if self._end is None:
            return None
        self._expected = True
        if not self._end.done():
            try:
                await self._execute("quit", timeout / 2)
            except KataError as error:
                log.debug("quit of %s: %s", self.plan.sandbox_id, error)
            else:
                await self._ended(timeout / 2)
            if not self._end.done():
                self._signal(signal.SIGTERM)
                await self._ended(timeout / 2)
            if not self._end.done():
                self.kill()
                await self._ended(_KILL_TIMEOUT_S)
            if not self._end.done():
                raise DeadlineExceeded(f"qemu of {self.plan.sandbox_id} (process {self._pid}) survives SIGKILL")
        return await self.wait()

    async def _ended(self, timeout: float) -> None:
        assert self._end is not None
        await asyncio.wait({self._end}, timeout=timeout)

    def kill(self, why: str = "") -> None:
        """Send SIGKILL; `wait` returns when everything is released. Idempotent."""
        self._why_ended = self._why_ended or why
        self._expected = True
        self._forced = self._forced or (self._process is not None and self._process.alive)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None or self._process.pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._process.pidfd, number)
        except ProcessLookupError:
            pass

    async def pause(self) -> None:
        """Stop the vCPUs. Raises Unavailable, DeadlineExceeded, FailedPrecondition."""
        await self._execute("stop", _QMP_TIMEOUT_S)

    async def resume(self) -> None:
        """Let the vCPUs run again. Raises Unavailable, DeadlineExceeded, FailedPrecondition."""
        await self._execute("cont", _QMP_TIMEOUT_S)

    def place(self, device_id: str) -> str:
        """The PCI path in the guest of a device that was there at boot."""
        return slots.root_port([device.id for device in self.plan.devices].index(device_id)).path

    async def plug(self, device: Device) -> str:
        """Hot-plug a device; see `Hotplug.plug`."""
        if isinstance(device, VfioDevice):
            confine.allow_locked_memory(self._pid)
            await self._admit(device)
        return await self._plugging().plug(device)

    async def _admit(self, device: VfioDevice) -> None:
        """Put what QEMU needs to open a device into its jail.

        Raises:
            NotFound: the device is in no IOMMU group.
            FailedPrecondition: the kernel refuses.
        """
        uid = self._process.uid if self._process else None
        if uid is not None:
            try:
                await asyncio.to_thread(jail.admit, self._pid, uid.number, jail.vfio_nodes(device.host))
            except OSError as error:
                raise FailedPrecondition(f"PCI device {device.host} for {self.plan.sandbox_id}: {error}") from error

    async def unplug(self, device_id: str, timeout: float = UNPLUG_TIMEOUT_S) -> None:
        """Unplug a device; see `Hotplug.unplug`. A VM that has ended has released everything."""
        if self._end is None or not self._end.done():
            await self._plugging().unplug(device_id, timeout)

    async def grow_disk(self, device_id: str, size: int) -> None:
        """Set the size of a disk; see `Hotplug.grow_disk`."""
        await self._plugging().grow_disk(device_id, size)

    def _plugging(self) -> Hotplug:
        if self._qmp is None:
            raise FailedPrecondition(f"the VM of {self.plan.sandbox_id} does not run")
        if self._hotplug is None:
            # Not needed to start most VMs.
            from kata.runtime.hypervisor.qemu.hotplug import EmptyDisk, Hotplug

            free = slots.Slots(self.plan)
            empty = [
                EmptyDisk(empty_disk_name(index), slots.empty_disk(self.plan, index), read_only)
                for index, read_only in enumerate(self.plan.empty_disks)
            ]
            self._hotplug = Hotplug(self.plan.sandbox_id, free, self._qmp, self._run, empty)
        return self._hotplug

    async def resize(self, vcpus: int, memory_mib: int, timeout: float = RESIZE_TIMEOUT_S) -> Resized:
        """Resize the running VM; see `Resizer.resize`."""
        return await self._resizing().resize(vcpus, memory_mib, timeout)

    async def vcpu_threads(self) -> list[int]:
        """Ids of QEMU's threads that run the vCPUs."""
        numbers = await self._resizing().vcpu_threads()
        ids = thread_ids(self._pid)
        return [ids[number] for number in numbers if number in ids]

    def _resizing(self) -> Resizer:
        if self._qmp is None:
            raise FailedPrecondition(f"the VM of {self.plan.sandbox_id} does not run")
        if self._resizer is None:
            from kata.runtime.hypervisor.qemu.resize import Resizer

            self._resizer = Resizer(self.plan, self._run)
        return self._resizer

    async def save(self, state: int, timeout: float) -> bool:
        """Implements `VirtualMachine.save`, by a migration that ignores shared memory.

        Raises:
            FailedPrecondition: the VM's memory is not a file, or a device cannot be saved.
            DeadlineExceeded: QEMU does not answer, or needs longer than `timeout` seconds.
            Unavailable: QEMU has ended.
        """
        what = f"saving the VM of {self.plan.sandbox_id}"
        if not self._to_be_saved or self._qmp is None:
            raise FailedPrecondition(f"{what}: its memory is not a file")
        capability = {"capability": "x-ignore-shared", "state": True}
        await self._execute("migrate-set-capabilities", _QMP_TIMEOUT_S, capabilities=[capability])
        reads_files = await self._version() >= MAPS_READ_ONLY_SINCE
        uri = await (self._file_for(state) if reads_files else self._descriptor_for(state))
        await self._execute("migrate", _QMP_TIMEOUT_S, uri=uri)
        try:
            async with asyncio.timeout(timeout):
                status = await self._status_after("query-migrate", "none", "setup", "active", "device")
        except TimeoutError:
            raise DeadlineExceeded(f"{what} did not end within {timeout:.0f} s") from None
        if status != "completed":
            raise FailedPrecondition(f"{what} ended as {status}")
        return reads_files

    async def _file_for(self, state: int) -> str:
        """Hand over the file to save to, for QEMU since MAPS_READ_ONLY_SINCE; its URI. Raises as `_execute`."""
        # Of a set QEMU takes a descriptor only if it is open for just what it wants.
        writable = os.open(f"/proc/self/fd/{state}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            await self._execute("add-fd", _QMP_TIMEOUT_S, writable, **{"fdset-id": STATE_FDSET})
        finally:
            os.close(writable)
        return f"file:/dev/fdset/{STATE_FDSET}"

    async def _descriptor_for(self, state: int) -> str:
        """As `_file_for`, for an older QEMU."""
        await self._execute("getfd", _QMP_TIMEOUT_S, state, fdname="state")
        return "fd:state"

    async def _version(self) -> tuple[int, int]:
        """Of QEMU; (0, 0) if it does not say. Raises as `_execute`."""
        answer = await self._execute("query-version", _QMP_TIMEOUT_S)
        found = answer.get("qemu") if isinstance(answer, dict) else None
        return (int(found["major"]), int(found["minor"])) if isinstance(found, dict) else (0, 0)

    async def _run(self, command: Command) -> object:
        """Run a QMP command with its descriptor. Raises as `_execute`."""
        # One at a time: QEMU hands a descriptor to the next command that takes one.
        async with self._one_by_one:
            return await self._execute(command.name, _QMP_TIMEOUT_S, command.fd, **command.arguments)

    async def _execute(self, command: str, timeout: float, passed: int | None = None, /, **arguments: object) -> object:
        """Run a QMP command; the descriptor `passed` is sent with it.

        Raises:
            Unavailable: there is no connection.
            DeadlineExceeded: no answer in time.
            FailedPrecondition, NotFound: QEMU refuses.
        """
        what = f"qemu of {self.plan.sandbox_id}: {command}"
        if self._qmp is None:
            raise Unavailable(f"{what}: not connected")
        from qemu.qmp import ExecuteError, QMPError

        try:
            async with asyncio.timeout(timeout):
                if passed is not None:
                    self._qmp.send_fd_scm(passed)
                return await self._qmp.execute(command, arguments or None)
        except TimeoutError:
            raise DeadlineExceeded(f"{what}: no answer within {timeout:.1f} s") from None
        except ExecuteError as error:
            kind = NotFound if error.error_class == "DeviceNotFound" else FailedPrecondition
            raise kind(f"{what}: {error}") from error
        except QMPError as error:
            raise Unavailable(f"{what}: {error}") from error

    def console_tail(self, lines: int = 20) -> str:
        """The last lines of the guest's console, safe to show."""
        return self._console.tail(lines) if self._console else ""


def check_files(plan: VmPlan) -> None:
    """Check that the plan's files and directories exist, before anything is started.

    Raises:
        NotFound: one does not exist, is of the wrong kind, or cannot be read.
        FailedPrecondition: a QEMU with a user id of its own may not read one.
    """
    if not plan.vmm.is_file() or not os.access(plan.vmm, os.X_OK):
        package = plan.architecture.qemu_package
        raise NotFound(f"qemu: {plan.vmm} is not an executable file", hint=f"run: apt-get install {package}")
    for what, path in (("kernel", plan.kernel), ("initrd", plan.initrd), ("image", plan.image)):
        if path is not None and not (path.is_file() and os.access(path, os.R_OK)):
            raise NotFound(
                f"guest {what}: {path} is not a readable file", hint=f"run: {plan.architecture.build_command}"
            )
    directories = (
        ("run directory", plan.run_dir),
        ("shared directory", plan.share_dir),
        ("root directory", plan.root_dir),
    )
    for what, path in directories:
        if path is not None and not path.is_dir():
            raise NotFound(f"{what}: {path} is not a directory")
    if plan.jail_uids:
        jail.check_readable(plan)
