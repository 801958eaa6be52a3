"""What `start` tells the daemon, which is its child or a process in standby.

`start` imports this file, so it imports nothing slow.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_FIELDS = 7


class ShimParams:
    """The parameters of a shim.

    Attributes:
        events_address: containerd's ttrpc socket, or "" if it has named none.
        options: the serialised Any of the runtime's options, or b"".
        bundle: the bundle of the sandbox's first container.
        begun: when `start` began, by `time.monotonic`.
        environment: of `start`, and so of the daemon.
    """

    def __init__(
        self,
        *,
        sandbox_id: str,
        namespace: str,
        events_address: str,
        options: bytes,
        debug: bool,
        bundle: str,
        begun: float,
        environment: Mapping[str, str],
    ) -> None:
        self.sandbox_id = sandbox_id
        self.namespace = namespace
        self.events_address = events_address
        self.options = options
        self.debug = debug
        self.bundle = bundle
        self.begun = begun
        self.environment = environment

    def encode(self) -> bytes:
        """The message to a process in standby: fields that end with a null byte, which none of them can contain."""
        fields = [
            self.sandbox_id,
            self.namespace,
            self.events_address,
            self.options.hex(),
            "debug" if self.debug else "",
            self.bundle,
            repr(self.begun),
            *(f"{name}={value}" for name, value in self.environment.items()),
        ]
        return b"".join(os.fsencode(field) + b"\0" for field in fields)

    @classmethod
    def decode(cls, data: bytes) -> ShimParams:
        """The reverse of `encode`.

        Raises:
            ValueError: it is not a complete message.
        """
        if not data.endswith(b"\0"):
            raise ValueError("the message is truncated")
        fields = [os.fsdecode(field) for field in data[:-1].split(b"\0")]
        if len(fields) < _FIELDS:
            raise ValueError(f"the message has {len(fields)} fields")
        variables = [field.partition("=") for field in fields[_FIELDS:]]
        return cls(
            sandbox_id=fields[0],
            namespace=fields[1],
            events_address=fields[2],
            options=bytes.fromhex(fields[3]),
            debug=fields[4] == "debug",
            bundle=fields[5],
            begun=float(fields[6]),
            environment={name: value for name, _, value in variables},
        )
