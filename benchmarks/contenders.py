"""Who is measured: a name, and what `ctr run` gets for it."""

from __future__ import annotations

from collections.abc import Mapping

from kata.errors import KataError
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX

CONTENDERS: Mapping[str, tuple[str, ...]] = {
    "kata": ("--runtime", RUNTIME),
    "runc": ("--runtime", "io.containerd.runc.v2"),
}

#: Measured to compare with: a machine on which it does not run is still worth measuring.
OPTIONAL = frozenset({"runc"})


def usable(
    containerd: PrivateContainerd, contenders: Mapping[str, tuple[str, ...]] = CONTENDERS
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """The contenders that run here, and for each other one what it said.

    What the first start of a contender makes (a template, caches) is there afterwards.
    """
    found: dict[str, tuple[str, ...]] = {}
    complaints: dict[str, str] = {}
    for name, options in contenders.items():
        try:
            containerd.ctr("run", "--rm", *options, BUSYBOX, unique_id("bench"), "true", timeout=180)
        except KataError as error:
            complaints[name] = f"does not run here and is left out: {error.message.partition(';')[0]}"
        else:
            found[name] = options
    return found, complaints
