"""What a program that has taken over QEMU may try, run where QEMU runs: each attempt succeeds, or is refused.

Started as a program in QEMU's place, with what it should try things on as arguments: a process id and a directory of
the host. It writes a JSON object, by attempt "" for success and otherwise the error. Nothing of it does any harm where
it succeeds: what would is opened and not used.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import socket
import stat
import sys
from collections.abc import Callable

_LIBC = ctypes.CDLL(None, use_errno=True)
#: Descriptors that QEMU was started with.
_FDS = [int(name) for name in os.listdir("/proc/self/fd")]
_OTHER, _STATE = (int(sys.argv[1]), sys.argv[2]) if __name__ == "__main__" else (1, "/run/kata")


def _call(number: int, *arguments: int | bytes | None) -> int:
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = _LIBC.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _read(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY))


def _write(path: str, flags: int = 0) -> None:
    os.close(os.open(path, os.O_WRONLY | flags, 0o600))


def _create(path: str) -> None:
    _write(path, os.O_CREAT | os.O_EXCL)
    os.unlink(path)


def _list(path: str) -> None:
    if not os.listdir(path):
        raise FileNotFoundError(errno.ENOENT, "empty")


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as there:
        there.connect(path)


def _open_socket(*kind: int) -> None:
    socket.socket(*kind).close()


def _beyond_the_root() -> None:
    if "home" not in os.listdir("/.."):
        raise FileNotFoundError(errno.ENOENT, "the root's parent is the root")


def _directories_among_descriptors() -> None:
    if not any(stat.S_ISDIR(os.fstat(fd).st_mode) for fd in _FDS if _is_open(fd)):
        raise FileNotFoundError(errno.ENOENT, "no directory is open")


def _host_files_among_descriptors() -> None:
    for fd in filter(_is_open, _FDS):
        target = os.readlink(f"/proc/self/fd/{fd}")
        if target.startswith("/") and not target.startswith(("/dev/null", "/memfd:", "/proc")):
            return
    raise FileNotFoundError(errno.ENOENT, "no file of the host is open")


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
        return True
    except OSError:
        return False


def _ambient() -> None:
    if _LIBC.prctl(47, 2, 1, 0, 0) < 0:  # PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE
        raise OSError(ctypes.get_errno(), "prctl")


def _capabilities() -> None:
    header = (0x20080522).to_bytes(4, "little") + bytes(4)  # version 3, this process
    _call(126, header, (0xFFFFFFFF).to_bytes(4, "little") * 6)


def _own_descriptor_as_writable() -> None:
    os.close(os.open(sys.executable, os.O_RDWR))


def _others() -> None:
    if not [name for name in os.listdir("/proc") if name.isdigit() and name != os.readlink("/proc/self")]:
        raise ProcessLookupError(errno.ESRCH, "there is no other process")


def _files() -> dict[str, Callable[[], object]]:
    return {
        "read /etc/shadow": lambda: _read("/etc/shadow"),
        "read /etc/passwd": lambda: _read("/etc/passwd"),
        "create a file in /etc": lambda: _create("/etc/kata-escape"),
        "create a file in /": lambda: _create("/kata-escape"),
        "create a file in /tmp": lambda: _create("/tmp/kata-escape"),
        "create a file in /dev/shm": lambda: _create("/dev/shm/kata-escape"),
        "list /root": lambda: os.listdir("/root"),
        "list /home": lambda: os.listdir("/home"),
        "list the templates": lambda: os.listdir("/var/lib/kata/templates"),
        "list the sandboxes' directories": lambda: os.listdir("/run"),
        "list its own sandbox's directory": lambda: os.listdir(_STATE),
        "open its own program for writing": _own_descriptor_as_writable,
        "open the C library for writing": lambda: _write("/lib/x86_64-linux-gnu/libc.so.6"),
        "change its own program's mode": lambda: os.chmod(sys.executable, 0o755),
        "go beyond the root": _beyond_the_root,
        "a directory among the descriptors": _directories_among_descriptors,
        "a file of the host among the descriptors": _host_files_among_descriptors,
        "open /dev/mem": lambda: _read("/dev/mem"),
        "open /dev/kmsg": lambda: _read("/dev/kmsg"),
        "open /dev/fuse": lambda: _read("/dev/fuse"),
        "list /dev/vfio": lambda: os.listdir("/dev/vfio"),
        "make a device node": lambda: os.mknod("/dev/kata-escape", 0o600 | stat.S_IFCHR, os.makedev(1, 1)),
        "list /sys": lambda: _list("/sys"),
        "list /sys/fs/cgroup": lambda: _list("/sys/fs/cgroup"),
        "list /sys/kernel/debug": lambda: _list("/sys/kernel/debug"),
        "name_to_handle_at": lambda: _call(303, -100, b"/", bytes(136), bytes(8), 0),
        "open_by_handle_at": lambda: _call(304, -100, (8).to_bytes(4, "little") + bytes(132), 0),
        "fanotify_init": lambda: _call(300, 0, 0),
    }


def _proc() -> dict[str, Callable[[], object]]:
    return {
        "see other processes": _others,
        "open another's memory": lambda: _read(f"/proc/{_OTHER}/mem"),
        "read another's environment": lambda: _read(f"/proc/{_OTHER}/environ"),
        "list another's root": lambda: os.listdir(f"/proc/{_OTHER}/root"),
        "open /proc/kcore": lambda: _read("/proc/kcore"),
        "open /proc/kallsyms": lambda: _read("/proc/kallsyms"),
        "open /proc/sysrq-trigger for writing": lambda: _write("/proc/sysrq-trigger"),
        "open core_pattern for writing": lambda: _write("/proc/sys/kernel/core_pattern"),
        "open ip_forward for writing": lambda: _write("/proc/sys/net/ipv4/ip_forward"),
        "signal another": lambda: os.kill(_OTHER, 0),
        "signal all others": lambda: os.kill(-1, 0),
        "ptrace another": lambda: _call(101, 0x4206, _OTHER, 0, 0),  # PTRACE_SEIZE
        "ptrace itself": lambda: _call(101, 0, 0, 0, 0),
        "process_vm_readv": lambda: _call(310, _OTHER, None, 0, None, 0, 0),
        "pidfd_open": lambda: _call(434, _OTHER, 0),
        "pidfd_getfd": lambda: _call(438, 0, 0, 0),
        "limits of another": lambda: resource.prlimit(_OTHER, resource.RLIMIT_CORE, (0, 0)),
        "lock memory": lambda: _call(149, id(_FDS) & ~4095, 4096),
    }


def _ids() -> dict[str, Callable[[], object]]:
    return {
        "become root": lambda: os.setresuid(0, 0, 0),
        "become another user": lambda: os.setresuid(1000, 1000, 1000),
        "root's group": lambda: os.setresgid(0, 0, 0),
        "supplementary groups": lambda: os.setgroups([0]),
        "take capabilities": _capabilities,
        "ambient capabilities": _ambient,
        "a higher priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, -20),
        "real-time scheduling": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    }


def _kernel() -> dict[str, Callable[[], object]]:
    return {
        "a new user namespace": lambda: _call(272, 0x10000000),
        "a new mount namespace": lambda: _call(272, 0x00020000),
        "clone into a user namespace": lambda: _fork(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0),
        "clone3": lambda: _fork(435, bytes(88), 88),
        "setns": lambda: _call(308, _FDS[0], 0),
        "chroot": lambda: os.chroot("/"),
        "pivot_root": lambda: _call(155, b"/", b"/"),
        "mount a tmpfs": lambda: _call(165, b"x", b"/proc", b"tmpfs", 0, None),
        "mount /proc": lambda: _call(165, b"x", b"/proc", b"proc", 0, None),
        "make the root writable": lambda: _call(165, b"x", b"/", b"", 0x1020, None),
        "unmount the root": lambda: _call(166, b"/", 2),
        "open_tree": lambda: _call(428, -100, b"/", 1),
        "fsopen": lambda: _call(430, b"tmpfs", 0),
        "mount_setattr": lambda: _call(442, -100, b"/", 0, bytes(32), 32),
        "init_module": lambda: _call(175, bytes(64), 64, b""),
        "kexec_load": lambda: _call(246, 0, 0, None, 0),
        "reboot": lambda: _call(169, 0xFEE1DEAD, 672274793, 0, None),  # Ctrl-Alt-Del is not to reboot
        "swapon": lambda: _call(167, b"/nonexistent", 0),
        "the kernel's log": lambda: _call(103, 3, bytes(4096), 16),
        "acct": lambda: _call(163, None),
        "set the time": lambda: _call(227, 0, bytes(16)),
        "sethostname": lambda: _call(170, b"x", 1),
        "iopl": lambda: _call(172, 3),
        "bpf": lambda: _call(321, 0, (1).to_bytes(4, "little") + bytes(116), 120),
        "perf_event_open": lambda: _call(
            298, (1).to_bytes(4, "little") + (112).to_bytes(4, "little") + bytes(104), 0, -1, -1, 0
        ),
        "userfaultfd": lambda: _call(323, 1),  # UFFD_USER_MODE_ONLY
        "add_key": lambda: _call(248, b"user", b"kata", b"x", 1, -3),
        "keyctl": lambda: _call(250, 0, -3, 1),
        "request_key": lambda: _call(249, b"user", b"kata", None, 0),
        "quotactl": lambda: _call(179, 0, None, 0, None),
        "modify_ldt": lambda: _call(154, 0, bytes(64), 64),
        "personality": lambda: _call(135, 0xFFFFFFFF),
        "x32's getpid": lambda: _call(0x40000027),
    }


def _fork(number: int, *arguments: int | bytes) -> None:
    if _call(number, *arguments) == 0:
        os._exit(0)


def _network() -> dict[str, Callable[[], object]]:
    return {
        "connect to containerd": lambda: _connect("/run/containerd/containerd.sock"),
        "connect to Docker": lambda: _connect("/run/docker.sock"),
        "connect to D-Bus": lambda: _connect("/run/dbus/system_bus_socket"),
        "a TCP socket": lambda: _open_socket(socket.AF_INET, socket.SOCK_STREAM),
        "a UDP socket": lambda: _open_socket(socket.AF_INET6, socket.SOCK_DGRAM),
        "a raw socket": lambda: _open_socket(socket.AF_INET, socket.SOCK_RAW, 1),
        "a packet socket": lambda: _open_socket(socket.AF_PACKET, socket.SOCK_RAW, 0),
        "a netlink socket": lambda: _open_socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
        "a vsock socket": lambda: _open_socket(socket.AF_VSOCK, socket.SOCK_STREAM),
        "a Unix socket": lambda: _open_socket(socket.AF_UNIX, socket.SOCK_STREAM),
    }


#: In this order: what changes the process itself comes last.
ATTEMPTS = {**_files(), **_proc(), **_network(), **_kernel(), **_ids()}


def main() -> None:
    """Try everything, and say what became of it."""
    found: dict[str, str] = {}
    for name, attempt in ATTEMPTS.items():
        try:
            attempt()
            found[name] = ""
        except OSError as error:
            found[name] = errno.errorcode.get(error.errno or 0, "?")
        except ValueError:
            found[name] = "EPERM"  # what Python makes of it for limits
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
