"""The jail of QEMU: a root directory that has only what QEMU opens, and a user and group of its own.

The root is a tmpfs, mounted over everything else in a mount namespace of QEMU's own, and read-only. In it are QEMU's
libraries, firmware and guest image, bind-mounted where they are on the host, the devices that it may open, and of /proc
the part of its own process. All else that QEMU works on is handed to it as open descriptors.

It is made by the thread that runs QEMU, which goes there and comes back: so nothing has to be cleaned up, whoever is
killed, and no program runs that could do all this. The root that is underneath stays in the namespace, covered by the
tmpfs, as that of an initrd is by the root: only CAP_SYS_ADMIN uncovers it, which nobody in there has or can get.
Unmounting it as well would wait for all CPUs (synchronize_rcu), a start at a busy host for a tenth of a second.

Not here: capabilities, limits and the filter of system calls (`kata.runtime.hypervisor.qemu.confine`), and a QEMU that
serves the shared tree by itself: it needs what the shim mounts later, and is not jailed.

References: mount_namespaces(7); mount_setattr(2); proc(5) on subset and hidepid.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kata.errors import FailedPrecondition, NotFound
from kata.linux import mount
from kata.linux.namespaces import CLONE_FS, CLONE_NEWNS, inside_new_mounts, setns, unshare
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.qemu.jail_uid import JailUid
from kata.runtime.hypervisor.qemu.libraries import LOADER_CACHE, libraries

#: Where Debian's and others' QEMU finds firmware and option ROMs; links lead from one to the other.
_FIRMWARE = ("/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu", "/usr/share/qemu-efi-aarch64")
#: Devices: name, major and minor number, permissions.
_DEVICES = (("null", 1, 3, 0o666), ("zero", 1, 5, 0o666), ("urandom", 1, 9, 0o444))
_KVM, _VFIO = "/dev/kvm", "/dev/vfio"
#: The filter of system calls that setpriv loads.
FILTER = "/filter"
#: For directories, names and the filter.
_SIZE = "256k"


@dataclass(frozen=True)
class Root:
    """What is in the root, besides /dev and /proc.

    Attributes:
        files: absolute paths of files of the host.
        directories: absolute paths of directories of the host, without mounts beneath.
        devices: absolute paths of the host's device nodes that QEMU gets as its own.
        sysfs: whether /sys is there.
        filter: content of FILTER.
    """

    files: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    sysfs: bool = False
    filter: bytes = b""


def root_of(plan: VmPlan, filter_: bytes) -> Root:
    """The root for a plan's QEMU. Looks at the host: which libraries QEMU has, and where its firmware is.

    Raises:
        NotFound: QEMU, one of its libraries or a file of the plan does not exist.
        FailedPrecondition: QEMU's loader does not answer.
    """
    guest = (str(path) for path in (plan.kernel, plan.initrd, plan.image) if path)
    devices = [_KVM] if plan.accelerator == "kvm" else []
    return Root(
        files=tuple(dict.fromkeys((str(plan.vmm), *libraries(plan.vmm), LOADER_CACHE, *guest))),
        directories=tuple(path for path in (*_FIRMWARE, str(plan.programs)) if os.path.isdir(path)),
        devices=(*devices, *(node for device in plan.devices for node in vfio_nodes(device.host))),
        sysfs=bool(plan.devices),
        filter=filter_,
    )


def check_readable(plan: VmPlan) -> None:
    """Check that QEMU may read what it opens by name, with a user id that nothing on the host has.

    Raises:
        FailedPrecondition: it may not.
    """
    for what, path in (("qemu", plan.vmm), ("kernel", plan.kernel), ("initrd", plan.initrd), ("image", plan.image)):
        if path is not None and not os.stat(path).st_mode & stat.S_IROTH:
            raise FailedPrecondition(
                f"{what}: {path} is not readable for all: QEMU has a user id of its own",
                hint=f'run: chmod o+r {path}; or set jail_uid_range to ""',
            )


@contextmanager
def inside(root: Root, uid: int) -> Iterator[None]:
    """Run the block, which forks, with the calling thread in a new root; the new process has the id `uid`.

    Raises:
        NotFound: a path of the root does not exist.
        OSError: the kernel refuses.
    """
    with inside_new_mounts():
        point = _keep_to_itself()
        top = mount.new_tmpfs(size=_SIZE, nr_inodes="1k", mode="755")
        try:
            mount.attach(top, point)
            os.fchdir(top)
        finally:
            os.close(top)
        # "/" is the host's until the end, and the working directory the new root.
        previous = os.umask(0)
        try:
            _fill(root, uid)
        finally:
            os.umask(previous)
        mount.make_read_only(".", recursive=True)
        os.chroot(".")
        yield


def _keep_to_itself() -> str:
    """See to it that nothing that is mounted reaches another namespace.

    Returns:
        Where the new root is to be mounted.

    Raises:
        OSError: the kernel refuses.
    """
    try:
        mount.set_propagation("/", mount.MS_SLAVE | mount.MS_REC)
        return "/"
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # A chroot whose root is not a mount point, and so cannot be changed; only CAP_SYS_CHROOT leads out, as ever.
    mount.set_propagation("/proc", mount.MS_PRIVATE)
    return "/proc"


def check(vmm: Path, ids: range) -> None:
    """Make a jail, and leave it.

    Raises:
        NotFound: QEMU or one of its libraries is missing.
        FailedPrecondition: the kernel refuses, or the ids are not to be had.
    """
    try:
        libraries(vmm)
        JailUid(ids).release()
        with inside(Root(), ids[0]):
            pass
    except OSError as error:
        raise FailedPrecondition(
            f"cannot be made: {(error.strerror or str(error)).lower()}",
            hint='as root outside of containers it can be; without it QEMU runs as root: set jail_uid_range to ""',
        ) from error


def _fill(root: Root, uid: int) -> None:
    made = {""}
    for path in root.directories:
        _bind(path, made, os.mkdir)
        made.add(path[1:])
    for path in root.files:
        if not any(path.startswith(f"{directory}/") for directory in root.directories):
            _bind(path, made, _make_file)
    for name, major, minor, mode in _DEVICES:
        _make_parents(f"dev/{name}", made)
        os.mknod(f"dev/{name}", mode | stat.S_IFCHR, os.makedev(major, minor))
    for path in root.devices:
        _make_parents(path[1:], made)
        _add_device(path[1:], os.stat(path).st_rdev, uid)
    if root.sysfs:
        _make_parents("sys/.", made)
        mount.bind("/sys", "sys")
    _make_parents("proc/.", made)
    flags = mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC
    mount.mount("proc", "proc", "proc", flags, "subset=pid,hidepid=invisible")
    fd = os.open(FILTER[1:], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        os.write(fd, root.filter)
    finally:
        os.close(fd)


def _bind(path: str, made: set[str], make: Callable[[str], object]) -> None:
    target = path[1:]
    _make_parents(target, made)
    try:
        make(target)
        mount.bind(path, target, 0)
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error


def _make_file(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))


def _make_parents(path: str, made: set[str]) -> None:
    parent = os.path.dirname(path)
    if parent not in made:
        _make_parents(parent, made)
        os.mkdir(parent, 0o755)
        made.add(parent)


def _add_device(path: str, number: int, uid: int) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, number)
    os.chown(path, uid, uid)


def vfio_nodes(host: str) -> list[str]:
    """The device nodes by which a PCI device is used: that of VFIO and that of its IOMMU group.

    Args:
        host: its address.

    Raises:
        NotFound: it is in no IOMMU group.
    """
    try:
        group = os.readlink(f"/sys/bus/pci/devices/{host}/iommu_group")
    except OSError as error:
        raise NotFound(f"PCI device {host} has no IOMMU group: {error.strerror}") from error
    return [f"{_VFIO}/vfio", f"{_VFIO}/{os.path.basename(group)}"]


def admit(pid: int, uid: int, nodes: Sequence[str]) -> None:
    """Put device nodes, and /sys, into the root of a QEMU that runs, for a device that is about to be plugged.

    Args:
        pid: QEMU's process id.
        uid: its user and group id.
        nodes: absolute paths of the host's device nodes.

    Raises:
        OSError: QEMU has ended, or the kernel refuses.
    """
    # Not among the imports: a shim that runs QEMU has loaded neither, and few sandboxes have such devices.
    from concurrent.futures import Future
    from threading import Thread

    done = Future[None]()
    numbers = {node: os.stat(node).st_rdev for node in nodes}
    fds: list[int] = []

    def work() -> None:
        try:
            unshare(CLONE_FS)
            setns(fds[1], CLONE_NEWNS)
            os.fchdir(fds[2])
            os.chroot(".")
            _admit(numbers, uid, fds[0])
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    try:
        fds.append(mount.clone_tree("/sys", recursive=True))
        fds.append(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
        fds.append(os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        # A thread of its own, which is thrown away: it does not come back from there.
        thread = Thread(target=work, name="jail", daemon=True)
        thread.start()
        thread.join()
        done.result()
    finally:
        for fd in fds:
            os.close(fd)


def _admit(numbers: dict[str, int], uid: int, sysfs: int) -> None:
    mount.make_writable("/")
    try:
        for node, number in numbers.items():
            os.makedirs(os.path.dirname(node), mode=0o755, exist_ok=True)
            if not os.path.exists(node):
                _add_device(node, number, uid)
        if not os.path.isdir("/sys"):
            os.mkdir("/sys", 0o755)
            mount.attach(sysfs, "/sys")
            mount.make_read_only("/sys", recursive=True)
    finally:
        mount.make_read_only("/", recursive=False)
