"""What CRI-O has to be told: a runtime of the type `vm`, for which it speaks containerd's shim protocol.

Reference: crio.conf(5), "CRIO.RUNTIME.RUNTIMES TABLE"; crio.conf.d(5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kata.engines.change import Change, new_file, parsed, table
from kata.errors import FailedPrecondition

CONFIG = Path("/etc/crio/crio.conf")
DROP_INS = Path("/etc/crio/crio.conf.d")
DROP_IN = "50-kata.conf"
HANDLER = "kata"

_BLOCK = """\
# Written by `kata setup crio`; `kata unset crio` removes it.
[crio.runtime.runtimes.{handler}]
  runtime_path = "{shim}"
  runtime_type = "vm"
  runtime_root = "/run/vc"
  privileged_without_host_devices = true
"""


@dataclass(frozen=True)
class Crio:
    """What was found of CRI-O.

    Attributes:
        shim: path of the shim that it will run.
        drop_ins: the directory of its drop-ins.
        files: content of its configuration and its drop-ins, but for ours, by path.
    """

    shim: Path
    drop_ins: Path = DROP_INS
    files: Mapping[Path, bytes] = field(default_factory=dict)


def plan(found: Crio) -> list[Change]:
    """What to change; nothing if somebody has done it by hand already.

    Raises:
        InvalidArgument: the configuration is not understood.
        FailedPrecondition: it has another runtime of this name.
    """
    for path, content in found.files.items():
        if handler := table(parsed(path, content), "crio", "runtime", "runtimes", HANDLER):
            if handler.get("runtime_path") == str(found.shim):
                return []
            raise FailedPrecondition(
                f"{path} has a runtime '{HANDLER}' already: {str(handler.get('runtime_path'))[:80]!r}",
                hint="another Kata's, perhaps: take it out there first; nothing was changed",
            )
    return [new_file(found.drop_ins / DROP_IN, _BLOCK.format(handler=HANDLER, shim=found.shim).encode())]
