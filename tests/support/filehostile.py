"""What a hostile container does to the server of its files (see `fileprograms`):

python3 -m support.filehostile hoard DIRECTORY FILES    opens as many files, tells, and holds them until it may go on
python3 -m support.filehostile escape DIRECTORY PATH    looks for a file of the host's by links
"""

from __future__ import annotations

import errno
import os
import resource
import sys
import time
from multiprocessing import get_context

from .fileprograms import told, write

_ROUNDS_S = 3.0
_UP = "../" * 40


def hoard(directory: str, files: str) -> None:
    wanted = int(files)
    limit = min(wanted + 1000, 1 << 20)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    os.makedirs(directory)
    os.chdir(directory)
    held: list[int] = []
    said = "no error"
    try:
        held.extend(os.open(f"{number}", os.O_CREAT | os.O_RDWR, 0o600) for number in range(wanted))
    except OSError as error:
        said = errno.errorcode.get(error.errno or 0, str(error))
    told({"held": len(held), "error": said})
    sys.stdout.flush()
    sys.stdin.readline()
    for fd in held:
        os.close(fd)
    for number in range(len(held)):
        os.unlink(f"{number}")
    write("after")
    with open("after", "rb") as file:
        told({"after": file.read() == b"content"})


def _swap(directory: str) -> None:
    """Have a directory and a link to the root change places, until killed."""
    os.chdir(directory)
    while True:
        os.rename("swapped", "aside")
        os.symlink("/", "swapped")
        os.unlink("swapped")
        os.symlink(_UP, "swapped")
        os.unlink("swapped")
        os.rename("aside", "swapped")


def escape(directory: str, path: str) -> None:
    os.makedirs(directory)
    os.chdir(directory)
    os.mkdir("swapped")
    os.symlink(path, "absolute")
    os.symlink(_UP + path.lstrip("/"), "relative")
    os.symlink("/proc/self/root" + path, "through-proc")
    os.symlink("/proc/1/root" + path, "through-init")
    os.symlink("/", "root")
    names = ["absolute", "relative", "through-proc", "through-init", "root" + path, _UP + path.lstrip("/")]
    swapping = get_context("fork").Process(target=_swap, args=(directory,), daemon=True)
    swapping.start()
    tried, read = 0, []
    begin = time.monotonic()
    while time.monotonic() - begin < _ROUNDS_S:
        for name in (*names, "swapped" + path):
            tried += 1
            try:
                with open(name, "rb") as file:
                    read.append(f"{name}: {file.read(100)!r}")
            except OSError:
                continue
    swapping.kill()
    told({"tried": tried, "read": read})


if __name__ == "__main__":
    {"hoard": hoard, "escape": escape}[sys.argv[1]](*sys.argv[2:4])
