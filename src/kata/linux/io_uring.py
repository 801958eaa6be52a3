"""Whether this process may use io_uring(7)."""

from __future__ import annotations

import ctypes
import os

from kata.linux.libc import LIBC

#: The same number on every architecture (include/uapi/asm-generic/unistd.h).
_SYS_IO_URING_SETUP = 425
#: sizeof(struct io_uring_params) (include/uapi/linux/io_uring.h).
_PARAMS_SIZE = 120


def is_allowed() -> bool:
    """Whether the kernel has it and does not forbid it (`kernel.io_uring_disabled`, seccomp): a ring is made for it."""
    params = ctypes.create_string_buffer(_PARAMS_SIZE)
    ring = LIBC.syscall(_SYS_IO_URING_SETUP, 1, params)
    if ring < 0:
        return False
    os.close(ring)
    return True
