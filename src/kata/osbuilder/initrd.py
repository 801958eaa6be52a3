"""The initrd: busybox, a shell script and the modules that reach the root disk; or the whole root, with that script.

Not compressed: an emulated CPU reads two more megabytes faster than it decompresses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path, PurePosixPath

from kata.osbuilder import cpio

# The commands of init.sh, as links to busybox.
_APPLETS = ("insmod", "mount", "poweroff", "reboot", "sh", "sleep", "switch_root")


def build(
    busybox: bytes,
    modules: Sequence[tuple[str, bytes]],
    *,
    root_type: str = "erofs",
    disk: str = "/dev/vda",
    programs: Mapping[str, bytes] | None = None,
) -> bytes:
    """The initrd as a cpio archive.

    Args:
        busybox: a statically linked busybox.
        modules: (path, content), in the order in which they are to be loaded.
        root_type: file system of the root disk, as mount(8) has it.
        disk: that has it.
        programs: what else it needs, with libraries: path to content, executable.
    """
    programs = programs or {}
    named = [(PurePosixPath(path).name, content) for path, content in modules]
    entries = [cpio.directory(name) for name in ("bin", "dev", "modules", "proc", "sys", "sysroot")]
    parents = {str(parent) for path in programs for parent in PurePosixPath(path).parents} - {".", "bin"}
    entries.extend(cpio.directory(path) for path in sorted(parents))
    # The kernel opens it as the standard streams of /init, before /dev is mounted.
    entries.append(cpio.character_device("dev/console", 5, 1))
    entries.append(cpio.file("init", files(__package__).joinpath("init.sh").read_bytes(), 0o755))
    entries.append(cpio.file("bin/busybox", busybox, 0o755))
    entries.extend(cpio.symlink(f"bin/{applet}", "busybox") for applet in _APPLETS)
    entries.extend(cpio.file(path, content, 0o755) for path, content in sorted(programs.items()))
    entries.append(cpio.file("modules/root", f"{root_type} {disk}\n".encode()))
    entries.append(cpio.file("modules/order", "".join(f"{name}\n" for name, _ in named).encode()))
    entries.extend(cpio.file(f"modules/{name}", content) for name, content in named)
    return cpio.archive(entries)


def build_alone(root: Path) -> bytes:
    """A guest's whole root as a cpio archive, in which nothing has to be found.

    Raises:
        OSError: a file cannot be read.
    """
    script = files(__package__).joinpath("init.sh").read_bytes()
    first = [cpio.file("init", script, 0o755), cpio.directory("dev"), cpio.character_device("dev/console", 5, 1)]
    return cpio.archive((*first, *cpio.tree(root, left_out=("init", "dev"))))
