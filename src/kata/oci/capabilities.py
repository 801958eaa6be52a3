"""The capabilities that the guest's kernel has.

Source: capabilities(7); the last one came with Linux 5.9.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kata.oci.spec import Capabilities

_SETS: Final[tuple[Literal["bounding", "effective", "inheritable", "permitted", "ambient"], ...]] = (
    *("bounding", "effective", "inheritable", "permitted", "ambient"),
)
KNOWN = frozenset(
    f"CAP_{name}"
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
        *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
        *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE"),
        *("SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME"),
        *("SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
        *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ"),
        *("PERFMON", "BPF", "CHECKPOINT_RESTORE"),
    )
)


def unknown_of(capabilities: Capabilities) -> list[str]:
    """Names in any of the sets that the guest's kernel does not have, sorted."""
    names: Iterable[str] = chain.from_iterable(capabilities.get(key, ()) for key in _SETS)
    return sorted({name for name in names if name.upper() not in KNOWN})


def known_of(capabilities: Capabilities) -> Capabilities:
    """The sets without such names. The argument is not changed."""
    known = capabilities.copy()
    for key in _SETS:
        if key in known:
            known[key] = [name for name in known[key] if name.upper() in KNOWN]
    return known
