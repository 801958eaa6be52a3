"""The initrd: busybox, a shell script and the modules that reach the root disk.

Not compressed: an emulated CPU reads two more megabytes faster than it decompresses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import PurePosixPath

from kata.osbuilder import cpio

# The commands of init.sh, as links to busybox.
_APPLETS = ("insmod", "mount", "poweroff", "reboot", "sh", "sleep", "switch_root")


def build(busybox: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """The initrd as a cpio archive.

    Args:
        busybox: a statically linked busybox.
        modules: (path, content), in the order in which they are to be loaded.
    """
    named = [(PurePosixPath(path).name, content) for path, content in modules]
    entries = [cpio.directory(name) for name in ("bin", "dev", "modules", "proc", "sys", "sysroot")]
    # The kernel opens it as the standard streams of /init, before /dev is mounted.
    entries.append(cpio.character_device("dev/console", 5, 1))
    entries.append(cpio.file("init", files(__package__).joinpath("init.sh").read_bytes(), 0o755))
    entries.append(cpio.file("bin/busybox", busybox, 0o755))
    entries.extend(cpio.symlink(f"bin/{applet}", "busybox") for applet in _APPLETS)
    entries.append(cpio.file("modules/order", "".join(f"{name}\n" for name, _ in named).encode()))
    entries.extend(cpio.file(f"modules/{name}", content) for name, content in named)
    return cpio.archive(entries)
