"""The filters of system calls, on a process that has one."""

from __future__ import annotations

import subprocess
import sys

from kata.runtime.hypervisor.qemu import seccomp

_PROGRAM = """
import ctypes, errno, os, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
filter_ = bytes.fromhex(sys.argv[1])
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
program = Program(len(filter_) // 8, filter_)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
def call(*arguments):
    result = libc.syscall(*map(ctypes.c_long, arguments))
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "done"
for number in (101, 272, 321, 435, 126, 161, 0x40000027, 39):
    print(call(number, 0, 0, 0, 0))
print(call(56, 0x10000000 | 17, 0, 0, 0, 0))
done = []
thread = threading.Thread(target=done.append, args=(1,))
thread.start()
thread.join()
print(done, subprocess.run(["true"]).returncode)
"""


def _under(filter_: bytes) -> list[str]:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, filter_.hex()], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_what_it_denies_and_that_programs_and_threads_go_on() -> None:
    *answers, after = _under(seccomp.bpf({**seccomp.DENIED, seccomp.CAPSET: 0}))
    #                  ptrace   unshare  bpf      clone3    capset  chroot   x32      getpid
    assert answers[:5] == ["EPERM", "EPERM", "EPERM", "ENOSYS", "done"]
    assert answers[6:] == ["EPERM", "done", "EPERM"], "x32's calls, getpid, and a new user namespace"
    assert after == "[1] 0"


def test_qemu_may_not_change_its_root_either() -> None:
    assert _under(seccomp.bpf(seccomp.DENIED_TO_QEMU))[5] == "EPERM"
    assert _under(seccomp.bpf(seccomp.DENIED))[5] in ("EPERM", "EFAULT"), "that is the kernel's answer"


def test_each_call_is_answered_once() -> None:
    assert len(seccomp.DENIED) == len(seccomp._DENIED)
    assert seccomp.CAPSET not in seccomp.DENIED
