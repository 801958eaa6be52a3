"""`make run`: one container in a virtual machine, through a real containerd."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from kata.errors import KataError
from tests.support.containerd import PrivateContainerd
from tests.support.images import BUSYBOX, busybox_archive

IMAGE = BUSYBOX


def main() -> int:
    """Run the container and show its output; return the exit status."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        with TemporaryDirectory(prefix="kata-demo-") as scratch, PrivateContainerd() as containerd:
            console.print("starting a private containerd and importing an image with the guest's busybox")
            containerd.import_image(busybox_archive(Path(scratch) / "busybox.tar", name=IMAGE))
            command = ("run", "--rm", "--runtime", "io.containerd.kata.v2", IMAGE, "hello", "uname", "-a")
            console.print(f"$ ctr {shlex.join(command)}", style="bold")
            begin = time.monotonic()
            console.print(containerd.ctr(*command).stdout, end="")
            console.print(f"This is the guest's kernel; the whole command took {time.monotonic() - begin:.1f} s.")
    except KataError as error:
        console.print(f"make run: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), style="red")
        return 1
    console.print("Next: make install, then kata check and kata run; see README.md.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
