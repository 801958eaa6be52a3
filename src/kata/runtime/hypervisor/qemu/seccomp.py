"""Filters of system calls, as BPF programs that setpriv(1) loads.

QEMU's own filter (`-sandbox`) is written for any host and any use: it leaves alone what only takes a capability, and
what attacks the kernel by a bug. The one here denies what neither QEMU nor its helpers have a use for.

References: seccomp(2); linux/bpf_common.h; asm/unistd_64.h; QEMU's softmmu/qemu-seccomp.c.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping

#: x86-64 in seccomp_data.arch (AUDIT_ARCH_X86_64), and where x32's numbers begin.
_X86_64, _X32 = 0xC000003E, 0x40000000
#: Classic BPF: load a word, compare, return.
_LOAD, _IF_EQUAL, _IF_NOT_LESS, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
#: What a filter returns: an error number in place of the call (0: it does nothing and succeeds); or the call is made.
_ERROR, _ALLOW = 0x00050000, 0x7FFF0000
#: Offsets in struct seccomp_data.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16

CAPSET, CHROOT, _CLONE, _CLONE3 = 126, 161, 56, 435
#: New namespaces, of clone's flags. Those of clone3 are in memory, which a filter does not see: where there is no
#: clone3, the C library takes clone.
_NEW_NAMESPACES = 0x7E020080

#: Calls that nothing that serves a guest makes, with x86-64's numbers.
_DENIED = {
    # Other processes.
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "pidfd_send_signal": 424,
    "pidfd_open": 434, "pidfd_getfd": 438, "process_madvise": 440, "process_mrelease": 448, "migrate_pages": 256,
    "move_pages": 279, "execveat": 322,
    # Mounts and namespaces.
    "mount": 165, "umount2": 166, "pivot_root": 155, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442, "statmount": 457, "listmount": 458,
    "open_tree_attr": 467, "unshare": 272, "setns": 308,
    # Files by handles, and watching all files.
    "name_to_handle_at": 303, "open_by_handle_at": 304, "fanotify_init": 300, "fanotify_mark": 301,
    # New connections: all that there are have been handed over.
    "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "accept4": 288,
    # The kernel.
    "init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320,
    "reboot": 169, "swapon": 167, "swapoff": 168, "syslog": 103, "acct": 163, "quotactl": 179, "quotactl_fd": 443,
    "adjtimex": 159, "settimeofday": 164, "clock_settime": 227, "clock_adjtime": 305, "sethostname": 170,
    "setdomainname": 171, "iopl": 172, "ioperm": 173, "vhangup": 153,
    # Where attacks on the kernel begin.
    "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "add_key": 248, "request_key": 249, "keyctl": 250,
    "modify_ldt": 154, "personality": 135, "uselib": 134, "ustat": 136, "sysfs": 139, "_sysctl": 156,
    "nfsservctl": 180, "lookup_dcookie": 212, "memfd_secret": 447,
}  # fmt: skip

DENIED: Mapping[int, int] = dict.fromkeys(_DENIED.values(), errno.EPERM)
#: The same for QEMU. Its helper for 9p changes its root by itself.
DENIED_TO_QEMU: Mapping[int, int] = {**DENIED, CHROOT: errno.EPERM}


def bpf(answers: Mapping[int, int]) -> bytes:
    """The BPF program that answers some system calls in place of the kernel.

    Denied are also all of i386 and x32, and new namespaces by clone(2).

    Args:
        answers: an error number by the number of the call on x86-64; 0 for a call that does nothing and succeeds.

    Returns:
        An array of struct sock_filter.
    """
    denied = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    lines = [(_LOAD, 0, 0, _ARCHITECTURE), (_IF_EQUAL, 1, 0, _X86_64), denied]
    allowed = (_RETURN, 0, 0, _ALLOW)
    lines += [(_LOAD, 0, 0, _NUMBER), (_IF_NOT_LESS, 0, 1, _X32), denied]
    for number, error in {_CLONE3: errno.ENOSYS, **answers}.items():
        lines += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | error)]
    lines += [(_IF_EQUAL, 1, 0, _CLONE), allowed]
    lines += [(_LOAD, 0, 0, _FIRST_ARGUMENT), (_IF_ANY_BIT, 0, 1, _NEW_NAMESPACES), denied, allowed]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
