"""What is compared: a name, and the options of `ctr run` for it."""

from __future__ import annotations

from collections.abc import Mapping

from kata.errors import KataError
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX

CONTENDERS: Mapping[str, tuple[str, ...]] = {
    "kata": ("--runtime", RUNTIME),
    "runc": ("--runtime", "io.containerd.runc.v2"),
}

#: Measured for comparison. A host on which one does not run can still be measured.
OPTIONAL = frozenset({"runc"})


def usable(
    containerd: PrivateContainerd, contenders: Mapping[str, tuple[str, ...]] = CONTENDERS
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Return the contenders that run here, and for each other one why it does not.

    A container of each is run, so that afterwards what a first start makes (a template, caches) exists.
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
