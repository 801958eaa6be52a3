"""Leave OpenSSL out of a process that never uses it: a shim lives as long as its sandbox, and each sandbox has one.

asyncio and the QMP client name `ssl` for sockets that nobody opens here, `hashlib` and `hmac` prefer OpenSSL's digests
to the interpreter's own. Loading it takes 4.5 MB of a shim's memory and about 15 ms of its start.
"""

from __future__ import annotations

import sys
from types import ModuleType


def leave_out_openssl() -> None:
    """Have nothing load OpenSSL from now on; `load_asyncio` comes next.

    `None` in `sys.modules` is how Python blocks an import (library reference, `sys.modules`); hashlib, hmac and asyncio
    all do without then. Without effect where asyncio has been imported already.
    """
    if "asyncio" not in sys.modules:
        blocked: dict[str, ModuleType | None] = {"ssl": None, "_hashlib": None}
        sys.modules.update(blocked)  # type: ignore[arg-type]


def load_asyncio() -> None:
    """Import asyncio, then let the QMP client find the one name of `ssl` that it wants, for an annotation."""
    import asyncio  # noqa: F401

    if sys.modules.get("ssl") is None:
        names = ModuleType("ssl", "Stands for the ssl module in a shim, which opens no TLS connection.")
        names.SSLContext = type("SSLContext", (), {})  # type: ignore[attr-defined]
        sys.modules["ssl"] = names
