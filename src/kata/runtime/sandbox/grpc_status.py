"""The one place where errors become gRPC status codes, for containerd and for callers of the management socket."""

from __future__ import annotations

import errno
import logging

from kata.errors import Code, KataError

log = logging.getLogger(__name__)

#: Errors of a host that has run out of something.
_EXHAUSTED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE})


def to_status(error: Exception) -> tuple[int, str]:
    """Code and message for the caller; anything but a KataError is logged with its traceback."""
    if isinstance(error, KataError):
        hint = f" ({error.hint})" if error.hint else ""
        return error.code, f"{error.message}{hint}"
    log.error("internal error", exc_info=error)
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return Code.RESOURCE_EXHAUSTED, f"the host has run out of something: {error}"
    return Code.INTERNAL, f"internal error: {type(error).__name__}: {error}"
