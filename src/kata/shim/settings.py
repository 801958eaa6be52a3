"""What `start` hands to the daemon."""

from __future__ import annotations

from dataclasses import dataclass, fields

from kata.shim.handover import Handover


@dataclass(frozen=True)
class Settings:
    """What `start` learned and hands to the daemon.

    Attributes:
        events_address: containerd's ttrpc socket, or "" if it did not say.
        options: the serialised Any of the runtime's options, or b"".
        bundle: the bundle of the sandbox's first container.
        begun: when `start` began, by `time.monotonic`.
    """

    sandbox_id: str
    namespace: str
    events_address: str
    options: bytes
    debug: bool
    bundle: str
    begun: float

    @classmethod
    def of(cls, handover: Handover) -> Settings:
        """What the daemon needs of what `start` knows."""
        return cls(**{field.name: getattr(handover, field.name) for field in fields(cls)})
