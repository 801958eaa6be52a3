"""A socket that accepts TCP connections to any address and port of a network namespace.

A BPF program in the kernel's socket lookup (Linux 5.9) steers them to it; nothing is rewritten, so the accepted
socket's own name is the original destination. The program is attached by a link, which is a descriptor: when its last
copy is closed, or its process is killed, the program is gone. Sources: the kernel's
Documentation/bpf/prog_sk_lookup.rst and instruction-set.rst, include/uapi/linux/bpf.h, bpf-helpers(7).
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct

from kata.linux.libc import LIBC, check

_SYS_BPF = {"x86_64": 321, "aarch64": 280}

_MAP_CREATE, _MAP_UPDATE_ELEM, _PROG_LOAD, _LINK_CREATE = 0, 2, 5, 28
_MAP_TYPE_SOCKMAP = 15
_PROG_TYPE_SK_LOOKUP = 30
_ATTACH_SK_LOOKUP = 36
_HELPER_MAP_LOOKUP_ELEM, _HELPER_SK_RELEASE, _HELPER_SK_ASSIGN = 1, 86, 124

# The helpers need no GPL-compatible program.
_LICENSE = b"Apache-2.0"
_NAME = b"kata_forward"


def steer(listener: socket.socket, namespace: int) -> int:
    """Have `listener` accept all new TCP connections of a network namespace.

    It has to listen in that namespace; a dual-stack IPv6 socket takes both. Existing connections are left alone; other
    listening sockets get no more connections.

    Args:
        listener: a listening socket.
        namespace: an open file of the namespace.

    Returns:
        The link's descriptor.

    Raises:
        OSError: the kernel refuses, or this is not x86-64 or aarch64.
    """
    sockets = program = -1
    try:
        sockets = _bpf(_MAP_CREATE, struct.pack("=5I", _MAP_TYPE_SOCKMAP, 4, 8, 1, 0))
        key, value = _buffer(struct.pack("=I", 0)), _buffer(struct.pack("=Q", listener.fileno()))
        _bpf(_MAP_UPDATE_ELEM, struct.pack("=IxxxxQQQ", sockets, _address(key), _address(value), 0))
        program = _load(instructions(sockets))
        return _bpf(_LINK_CREATE, struct.pack("=4I", program, namespace, _ATTACH_SK_LOOKUP, 0))
    finally:
        # The link keeps the program, and the program the map.
        for fd in (sockets, program):
            if fd >= 0:
                os.close(fd)


def instructions(sockets: int) -> bytes:
    """The program: assign the only socket of the map `sockets`, and continue the lookup.

    For a packet that the socket cannot take, such as a datagram, the assignment fails and the lookup is as without it.
    """
    context, key, found = 6, -4, 7
    return b"".join(
        (
            _insn(0xBF, context, 1),  # r6 = r1, the context
            _insn(0x62, 10, 0, key, 0),  # *(u32 *)(r10 - 4) = 0, the key
            _insn(0xBF, 2, 10),
            _insn(0x07, 2, 0, 0, key),  # r2 = r10 - 4
            _insn(0x18, 1, 1, 0, sockets),  # r1 = the map
            _insn(0x00),
            _insn(0x85, imm=_HELPER_MAP_LOOKUP_ELEM),
            _insn(0x15, 0, 0, 7, 0),  # no socket: to the end
            _insn(0xBF, found, 0),
            _insn(0xBF, 1, context),
            _insn(0xBF, 2, 0),
            _insn(0xB7, 3),  # no flags
            _insn(0x85, imm=_HELPER_SK_ASSIGN),
            _insn(0xBF, 1, found),
            _insn(0x85, imm=_HELPER_SK_RELEASE),
            _insn(0xB7, 0, imm=1),  # SK_PASS
            _insn(0x95),
        )
    )


def _insn(code: int, target: int = 0, source: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | target, offset, imm)


def _load(program: bytes) -> int:
    code, license_ = _buffer(program), _buffer(_LICENSE + b"\0")
    head = struct.pack("=IIQQ", _PROG_TYPE_SK_LOOKUP, len(program) // 8, _address(code), _address(license_))
    log = struct.pack("=IIQII", 0, 0, 0, 0, 0)
    return _bpf(_PROG_LOAD, head + log + struct.pack("=16sII", _NAME, 0, _ATTACH_SK_LOOKUP))


def _bpf(command: int, attributes: bytes) -> int:
    number = _SYS_BPF.get(os.uname().machine)
    if number is None:
        raise OSError(f"the number of bpf(2) on {os.uname().machine} is not known here")
    buffer = _buffer(attributes)
    return check(LIBC.syscall(number, command, buffer, len(attributes)), "bpf")


def _buffer(content: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(content, len(content))


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)
