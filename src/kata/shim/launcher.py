"""Write the executable `containerd-shim-kata-v2`.

containerd runs it up to three times for each container and waits, so the cost of a packaging tool's wrapper (site
packages, path files, `env` lookups: up to 100 ms) counts. The launcher names its interpreter and its import path
explicitly and skips `site`; the modules are compiled in advance, because a read-only installation cannot cache them.
"""

from __future__ import annotations

import compileall
import os
import sys
import sysconfig
from pathlib import Path

from kata.linux import atomic_file

NAME = "containerd-shim-kata-v2"

_TEMPLATE = """#!{interpreter} -IS
import sys

sys.path[:0] = {path!r}
from kata.shim.main import main

main()
"""


def launcher_text() -> str:
    """The launcher for the running interpreter and the installed package."""
    package = Path(__file__).resolve().parents[1]
    if sys.flags.no_site:
        # From a package or archive: all is in one directory, and the system's Python may be upgraded under it.
        return _TEMPLATE.format(interpreter=sys.executable, path=[str(package.parent)])
    interpreter = os.path.realpath(sys.executable)
    import_path = list(
        dict.fromkeys([str(package.parent), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    )
    return _TEMPLATE.format(interpreter=interpreter, path=import_path)


def write_launcher(directory: Path) -> Path:
    """Write the launcher, and compile the package; returns its path. Raises OSError."""
    compileall.compile_dir(Path(__file__).resolve().parents[1], quiet=1)
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / NAME
    # Renamed into place: a sandbox may be starting at this moment.
    atomic_file.write(target, launcher_text(), mode=0o755)
    return target


if __name__ == "__main__":
    sys.stdout.write(f"{write_launcher(Path(sys.argv[1]))}\n")
