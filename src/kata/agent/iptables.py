"""The guest's packet filter, read and written as a whole, with Debian's iptables (over nf_tables)."""

from __future__ import annotations

import os

from kata.agent.reaper import Reaper
from kata.errors import FailedPrecondition, InvalidArgument, ResourceExhausted

_TIMEOUT_S = 60.0
#: Bytes that fit into a response.
_MAX_OUTPUT = 3 << 20
#: Seconds to wait for another process that changes the tables, as in Kata.
_LOCK_TIMEOUT_S = "5"


async def save(reaper: Reaper, *, ipv6: bool) -> bytes:
    """All tables, in the form of iptables-save(8).

    Raises:
        FailedPrecondition: the guest has no iptables, or it fails.
        ResourceExhausted: the rules do not fit into a response.
    """
    return await _run(reaper, [_program("save", ipv6)], b"")


async def restore(reaper: Reaper, data: bytes, *, ipv6: bool) -> bytes:
    """Replace the tables that are named in `data`, in the form of iptables-restore(8).

    Args:
        reaper: starts the program.
        data: the rules.
        ipv6: whether they are of IPv6.

    Returns:
        What the program printed.

    Raises:
        InvalidArgument: no rules, or invalid ones; nothing has changed then.
        FailedPrecondition: as `save`.
    """
    if not data.strip():
        raise InvalidArgument("there are no rules to restore", hint="`*filter`, a line and `COMMIT` clears a table")
    return await _run(reaper, [_program("restore", ipv6), "--wait", _LOCK_TIMEOUT_S], data)


def _program(verb: str, ipv6: bool) -> str:
    return f"ip{'6' if ipv6 else ''}tables-nft-{verb}"


async def _run(reaper: Reaper, argv: list[str], data: bytes) -> bytes:
    files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("rules", "output", "errors")]
    given, output, errors = files
    try:
        os.write(given, data)
        os.lseek(given, 0, os.SEEK_SET)
        try:
            pid, exited = reaper.spawn(argv, stdin=given, stdout=output, stderr=errors)
        except OSError as error:
            raise FailedPrecondition(f"cannot run {argv[0]}: {error.strerror}") from error
        status = await reaper.finish(pid, exited, argv[0], _TIMEOUT_S)
        if status:
            said = os.pread(errors, 4096, 0).decode(errors="replace").strip()
            wrong = InvalidArgument if data else FailedPrecondition
            raise wrong(f"{argv[0]} failed with status {status}: {said}")
        if os.fstat(output).st_size > _MAX_OUTPUT:
            raise ResourceExhausted(f"{argv[0]} printed more than {_MAX_OUTPUT >> 20} MiB")
        return os.pread(output, _MAX_OUTPUT, 0)
    finally:
        for file in files:
            os.close(file)
