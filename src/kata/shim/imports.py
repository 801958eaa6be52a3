"""Keep a shim from importing what it never uses: each sandbox has a shim, for as long as it lives.

asyncio and the QMP client import `ssl` for sockets that a shim never opens; `hashlib` and `hmac` prefer OpenSSL's
digests to the interpreter's own: 4.5 MB of a shim's memory and about 15 ms of its start. protobuf imports its
implementation in Python besides the one in C that it uses: 1.3 MB and 10 ms. asyncio and dataclasses import `inspect`
for five functions of a few lines: 0.9 MB and 10 ms.
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

    @staticmethod
    def get_annotations(subject: type) -> dict[str, Any]:
        # Of a class, as dataclasses asks since Python 3.13.
        return dict(vars(subject).get("__annotations__", {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # importing asks for __path__
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def leave_out_inspect() -> None:
    """Import `inspect` only when more of it is needed; call this before asyncio and dataclasses are imported."""
    sys.modules.setdefault("inspect", _Inspect("inspect"))


def leave_out_openssl() -> None:
    """Keep OpenSSL from being loaded from now on; call `load_asyncio` next.

    `None` in `sys.modules` is how Python blocks an import (library reference, `sys.modules`); hashlib, hmac and asyncio
    all do without it then. Has no effect if asyncio has been imported already.
    """
    if "asyncio" not in sys.modules:
        blocked: dict[str, ModuleType | None] = {"ssl": None, "_hashlib": None}
        sys.modules.update(blocked)  # type: ignore[arg-type]


def load_asyncio() -> None:
    """Import asyncio, then provide the one name of `ssl` that the QMP client needs, for an annotation."""
    import asyncio  # noqa: F401

    if sys.modules.get("ssl") is None:
        names = ModuleType("ssl", "Stands for the ssl module in a shim, which opens no TLS connection.")
        names.SSLContext = type("SSLContext", (), {})  # type: ignore[attr-defined]
        sys.modules["ssl"] = names


def leave_out_pure_protobuf() -> None:
    """Keep protobuf from importing its implementation in Python, if it has the one in C ("upb")."""
    from google.protobuf.internal import api_implementation

    name = "google.protobuf.internal.python_message"
    if api_implementation.Type() == "upb" and name not in sys.modules:
        sys.modules[name] = ModuleType(name, "Stands for protobuf's implementation in Python, which a shim never uses.")
