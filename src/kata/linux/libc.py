"""The C library, opened once, and errno as OSError.

Not here: the calls themselves. Each concern declares its own prototypes next to its wrappers.
"""

import ctypes
import os

LIBC = ctypes.CDLL(None, use_errno=True)


def check(result: int, call: str, subject: str | None = None) -> int:
    """Return `result` unless it is negative.

    Args:
        result: of a call through LIBC.
        call: names it in the error.
        subject: the path or name that it was about, the error's `filename`.

    Raises:
        OSError: the matching subclass (FileNotFoundError, PermissionError…), named after the call and its subject.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", subject)
    return result
