"""What is to stay flat: how it is measured, and whether it has. All but `measure` is pure."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kata.linux import mountinfo
from kata.metrics.procfs import Process
from kata.runtime.ledger.journal import STATE_ROOT
from kata.shim.start import SOCKET_DIR

_CGROUPS = "/sys/fs/cgroup"
_MIB = 1 << 20
#: Rounds at the beginning, in which caches fill, and how many more it takes to tell a slope.
WARM_UP, ENOUGH = 8, 20


@dataclass(frozen=True)
class Quantity:
    """One thing that is measured after each round.

    Attributes:
        name: of the figure, with its unit.
        bound: by how much it may grow in 100 rounds; None: it is shown, and may do what it likes.
    """

    name: str
    bound: float | None


QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity("containerd: descriptors", 5),
        Quantity("containerd: memory, MiB", 10),
        Quantity("shim: descriptors", 1),
        Quantity("shim: memory, MiB", 2),
        Quantity("shim: threads", 1),
        Quantity("VM: descriptors", 1),
        # Translated code and what the guest has touched: it grows up to a limit.
        Quantity("VM: memory, MiB", None),
        Quantity("host: cgroups", 2),
        Quantity("host: mounts", 2),
        Quantity("host: network interfaces", 1),
        Quantity("host: state directories", 1),
        Quantity("host: sockets of shims", 1),
        # With those that are removed and that pages are still charged to: the kernel's own affair.
        Quantity("kernel: memory cgroups", None),
    )
}


@dataclass(frozen=True)
class Outcome:
    """A round that is over.

    Attributes:
        number: of the round.
        seconds: since the soak began.
        kills: processes killed, or containerd restarted by SIGKILL.
        pressure: what the host was short of.
        ended: what ended the pods' lives early, one sentence each.
        problems: what must not be.
        figures: by the names of QUANTITIES.
    """

    number: int
    seconds: float
    kills: int
    pressure: str
    ended: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Slope:
    """How a quantity has changed in 100 rounds, with the standard error, by a line of least squares."""

    per_100: float
    error: float


def measure(containerd: int, shim: int, vm: int) -> dict[str, float]:
    """Look at what lasts: containerd, and a pod that nobody disturbs. Raises OSError if one of them has ended."""
    found: dict[str, float] = {}
    for name, pid in (("containerd", containerd), ("shim", shim), ("VM", vm)):
        process = Process(pid)
        found[f"{name}: descriptors"] = process.descriptors()
        found[f"{name}: memory, MiB"] = round(process.resident_bytes / _MIB, 1)
        found[f"{name}: threads"] = process.threads
    found["host: cgroups"] = sum(len(directories) for _, directories, _ in os.walk(_CGROUPS))
    found["host: mounts"] = len(list(mountinfo.read()))
    found["host: network interfaces"] = len(os.listdir("/sys/class/net"))
    found["host: state directories"] = sum(path.is_dir() for path in Path(STATE_ROOT).iterdir())
    found["host: sockets of shims"] = len(os.listdir(SOCKET_DIR))
    for line in Path("/proc/cgroups").read_text(encoding="ascii").splitlines():
        if line.startswith("memory\t"):
            found["kernel: memory cgroups"] = int(line.split()[2])
    return {name: value for name, value in found.items() if name in QUANTITIES}


def slope(points: Sequence[tuple[float, float]]) -> Slope | None:
    """The slope of (round, value) after the warm-up; None if they are too few to tell."""
    points = [point for point in points if point[0] > WARM_UP]
    if len(points) < ENOUGH:
        return None
    count = len(points)
    x_mean, y_mean = (sum(point[axis] for point in points) / count for axis in (0, 1))
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    steep = sum((x - x_mean) * (y - y_mean) for x, y in points) / spread
    rest = sum((y - y_mean - steep * (x - x_mean)) ** 2 for x, y in points)
    return Slope(100 * steep, 100 * math.sqrt(rest / (count - 2) / spread))


def points_of(outcomes: Sequence[Outcome], name: str) -> list[tuple[float, float]]:
    """Round and value of a quantity."""
    return [(outcome.number, outcome.figures[name]) for outcome in outcomes if name in outcome.figures]


def growing(outcomes: Sequence[Outcome]) -> list[str]:
    """What has grown beyond its bound, by more than twice the standard error; one sentence each."""
    found = []
    for quantity in QUANTITIES.values():
        line = slope(points_of(outcomes, quantity.name))
        if line and quantity.bound is not None and line.per_100 - 2 * line.error > quantity.bound:
            found.append(f"{quantity.name}: grows by {line.per_100:.2f} in 100 rounds; the bound is {quantity.bound:g}")
    return found
