"""The one place where the shim's errors become gRPC status codes for containerd."""

from __future__ import annotations

import logging

from kata.errors import Code, KataError

log = logging.getLogger(__name__)


def to_status(error: Exception) -> tuple[int, str]:
    """Code and message for the caller; what is not a KataError is a bug and is logged with its trace."""
    if isinstance(error, KataError):
        hint = f" ({error.hint})" if error.hint else ""
        return error.code, f"{error.message}{hint}"
    log.error("internal error", exc_info=error)
    return Code.INTERNAL, f"internal error: {type(error).__name__}: {error}"
