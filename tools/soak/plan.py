"""What happens in each round, from the seed alone: the same seed plans the same soak, as far as a host repeats itself.

Pure.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.support.killing import ALL_THREE, ANY, CONTAINERD, PROGRAMS

#: Of a pod's life, besides RunPodSandbox and what removes it: `tools.soak.life` has what each does.
STEPS = ("container", "exec", "output", "resize", "stop")
#: containerd is stopped by SIGTERM and run again, as for an upgrade: no kill.
RESTART = "restart of containerd"
#: How often each is chosen.
_VICTIMS = {**dict.fromkeys(PROGRAMS, 6), ALL_THREE: 6, ANY: 10, CONTAINERD: 1, RESTART: 1}
#: Of ten rounds, how many nobody disturbs: all that is asked for then has to succeed.
_PEACEFUL = 1
_MAX_LIVES, _MAX_STEPS, _MAX_KILLS = 3, 6, 5
#: Seconds of a round in which processes are killed, from the start of the pods' lives.
_LAST_KILL_S = 5.0
#: MiB of memory for each pod of a round that is short of it: VM, helpers and what they have in the page cache.
_TIGHT_MIB = (70, 240)
#: MiB that a disk which is short of room has left.
_LEFT_MIB = (0, 12)


@dataclass(frozen=True)
class Kill:
    """SIGKILL to a `victim` (`tests.support.killing`) of one pod, or a RESTART, seconds after a round's start."""

    after_s: float
    victim: str


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        number: from 1 on.
        lives: of each pod, the STEPS.
        kills: in their order; none in a peaceful round.
        memory_mib: the limit of all pods together, or None.
        disk_mib: what containerd's disk has left, or None.
    """

    number: int
    lives: tuple[tuple[str, ...], ...]
    kills: tuple[Kill, ...]
    memory_mib: int | None
    disk_mib: int | None

    @property
    def peaceful(self) -> bool:
        """Whether all has to succeed."""
        return not self.kills

    @property
    def pressure(self) -> str:
        """What the host is short of, in words."""
        memory = f"memory ({self.memory_mib} MiB)" if self.memory_mib is not None else ""
        disk = f"disk ({self.disk_mib} MiB left)" if self.disk_mib is not None else ""
        return " and ".join(filter(None, (memory, disk))) or "-"


def plan(seed: int, number: int) -> Round:
    """Plan a round."""
    choice = random.Random(f"{seed}:{number}")
    lives = tuple(
        ("container", *choice.choices(STEPS, k=choice.randint(1, _MAX_STEPS)))
        for _ in range(choice.randint(1, _MAX_LIVES))
    )
    if choice.randrange(10) < _PEACEFUL:
        return Round(number, lives, (), None, None)
    victims = choice.choices(tuple(_VICTIMS), tuple(_VICTIMS.values()), k=choice.randint(1, _MAX_KILLS))
    moments = sorted(choice.uniform(0.02, _LAST_KILL_S) for _ in victims)
    kills = tuple(Kill(round(moment, 2), victim) for moment, victim in zip(moments, victims, strict=True))
    short = choice.randrange(5)
    memory = choice.randint(*_TIGHT_MIB) * len(lives) if short in (0, 1) else None
    disk = choice.randint(*_LEFT_MIB) if short in (1, 2) else None
    return Round(number, lives, kills, memory, disk)
