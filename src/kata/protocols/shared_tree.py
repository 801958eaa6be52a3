"""How the guest mounts the shared tree, the directory of the host through which containers get their files.

Over 9p there is a second device, for the root of one container, which nobody but that container changes.

The tag is Kata's; 9p's options are those of Documentation/filesystems/9p.rst in the kernel.
"""

from __future__ import annotations

#: The mount tag of the shared tree's device.
TAG = "kataShared"
#: The mount tag of the device for a root.
ROOT_TAG = "kataRoot"

#: mount(8) options of a shared tree over virtio-fs.
VIRTIO_FS_OPTIONS = ("nodev",)


def options_9p(msize: int, *, cache: str = "mmap") -> tuple[str, ...]:
    """mount(8) options of a directory of the host over 9p.

    Args:
        msize: bytes of a message at most.
        cache: "mmap" is Kata's choice: files can be mapped shared and writable, and what is written goes to the host
            soon, at the latest when the file is closed. "loose" is for what nobody else changes: the guest does not
            ask the host again. The others lose more (docs/performance.md).
    """
    return ("trans=virtio", "version=9p2000.L", f"cache={cache}", "nodev", f"msize={msize}")
