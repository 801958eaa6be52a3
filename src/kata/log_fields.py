"""What a record of a log has besides its message, on both sides: the fields that Kata's log tools expect."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import Any

#: Characters of a message with its traceback. Escaped, each may become twelve.
_MAX_MESSAGE = 16 << 10

#: Id of the container that is worked on, "" for none. A task begins with its maker's, and changes no other's.
CONTAINER: ContextVar[str] = ContextVar("container", default="")


class FieldsFormatter(logging.Formatter):
    """Base of the formatters, which differ in how they write the fields.

    Args:
        name: of the component.

    Attributes:
        sandbox: id of the sandbox that this process serves; "" if it has none yet.
    """

    def __init__(self, name: str, sandbox: str = "") -> None:
        super().__init__()
        self.sandbox = sandbox
        self._name = name

    def fields(self, record: logging.LogRecord) -> dict[str, str]:
        """Message and fields, without those that are not known."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        if len(message) > _MAX_MESSAGE:
            message = f"{message[:_MAX_MESSAGE]}... ({len(message) - _MAX_MESSAGE} more characters)"
        ids = {"sandbox": self.sandbox, "container": CONTAINER.get()}
        return {
            "msg": message,
            "level": record.levelname,
            "name": self._name,
            "pid": str(os.getpid()),
            **{key: value for key, value in ids.items() if value},
        }


class ForContainer:
    """An RPC service whose methods log for the container that their request names.

    Args:
        service: has a method for each RPC: request and context in, response out.
        field: of a request, the container's id; a request without it is for none.
    """

    def __init__(self, service: object, field: str) -> None:
        self._service = service
        self._field = field

    def __getattr__(self, name: str) -> Callable[[Any, Any], Coroutine[Any, Any, Any]]:
        method: Callable[[Any, Any], Awaitable[Any]] = getattr(self._service, name)

        async def call(request: Any, context: Any) -> Any:
            CONTAINER.set(getattr(request, self._field, ""))  # each call is a task of its own
            return await method(request, context)

        return call
