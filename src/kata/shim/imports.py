"""Leave out of a process what it would load and never use: a shim lives as long as its sandbox, each sandbox has one.

asyncio and the QMP client name `ssl` for sockets that nobody opens here, `hashlib` and `hmac` prefer OpenSSL's digests
to the interpreter's own: 4.5 MB of a shim's memory and about 15 ms of its start. protobuf imports its implementation in
Python beside the one in C that it uses: 1.3 MB and 10 ms. asyncio and dataclasses import `inspect` for four functions
of a few lines: 0.9 MB and 10 ms.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from functools import partial
from importlib import import_module
from types import FunctionType, MethodType, ModuleType
from typing import Any

#: Of a function defined by `async def` (library reference, `inspect`).
_CO_COROUTINE = 0x80


class _Inspect(ModuleType):
    """Stands for `inspect` until somebody asks for more of it than asyncio does."""

    @staticmethod
    def isawaitable(subject: object) -> bool:
        return isinstance(subject, Awaitable)

    @staticmethod
    def iscoroutinefunction(subject: object) -> bool:
        while isinstance(subject, MethodType | partial):
            subject = subject.__func__ if isinstance(subject, MethodType) else subject.func
        return bool(getattr(getattr(subject, "__code__", None), "co_flags", 0) & _CO_COROUTINE)

    @staticmethod
    def isfunction(subject: object) -> bool:
        return isinstance(subject, FunctionType)

    @staticmethod
    def unwrap(subject: Any) -> Any:
        while hasattr(subject, "__wrapped__"):
            subject = subject.__wrapped__
        return subject

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # importing asks for __path__
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def leave_out_inspect() -> None:
    """Have nothing load `inspect` that does not need it; before asyncio and dataclasses are imported."""
    sys.modules.setdefault("inspect", _Inspect("inspect"))


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


def leave_out_pure_protobuf() -> None:
    """Have protobuf import nothing in place of its implementation in Python, if it has the one in C ("upb")."""
    from google.protobuf.internal import api_implementation

    name = "google.protobuf.internal.python_message"
    if api_implementation.Type() == "upb" and name not in sys.modules:
        sys.modules[name] = ModuleType(name, "Stands for protobuf's implementation in Python, which a shim never uses.")
