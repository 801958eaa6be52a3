"""Leave OpenSSL out of a process that never uses it: a shim lives as long as its sandbox, and each sandbox has one.

asyncio and the QMP client name `ssl` for sockets that nobody opens here, `hashlib` and `hmac` prefer OpenSSL's digests
to the interpreter's own. Loading it takes 4.5 MB of a shim's memory and about 15 ms of its start.
"""

from __future__ import annotations

import sys
from types import ModuleType


def leave_out_openssl() -> None:
    """Import asyncio without OpenSSL, and let nothing load it later.

    `None` in `sys.modules` is how Python blocks an import (library reference, `sys.modules`); asyncio, hashlib and hmac
    all do without then. The QMP client only wants a name for an annotation, which an empty class is good enough for.
    Without effect where asyncio has been imported already.
    """
    if "asyncio" in sys.modules:
        return
    blocked: dict[str, ModuleType | None] = {"ssl": None, "_hashlib": None}
    sys.modules.update(blocked)  # type: ignore[arg-type]
    import asyncio  # noqa: F401

    names = ModuleType("ssl", "Stands for the ssl module in a shim, which opens no TLS connection.")
    names.SSLContext = type("SSLContext", (), {})  # type: ignore[attr-defined]
    sys.modules["ssl"] = names
