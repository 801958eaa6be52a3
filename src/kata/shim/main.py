"""Command line of containerd-shim-kata-v2: `start`, `delete`, `-info`, `-v`.

containerd runs `start` and `delete` once for each container and waits for them, so this file and what it imports import
nothing slow; the daemon's modules are imported after the fork.
"""

from __future__ import annotations

import os
import sys

from kata.errors import InvalidArgument, KataError
from kata.shim.arguments import parse


def main() -> None:
    """Run the action of the command line, and end the process: status 1 after a KataError or OSError.

    Raises:
        InvalidArgument: the action or an option is missing; like any KataError it is caught here, and printed.
    """
    try:
        arguments = parse(sys.argv[1:])
        if arguments.switches["v"] or arguments.switches["version"]:
            from kata.version import VERSION

            os.write(1, f"containerd-shim-kata-v2: version {VERSION}\n".encode())
        elif arguments.switches["info"]:
            from kata.shim.info import info
            from kata.shim.start import read_stdin

            os.write(1, info(read_stdin()))
        elif not arguments.action:
            raise InvalidArgument("no action: containerd runs this program with start or delete")
        elif not arguments.id or not arguments.namespace:
            raise InvalidArgument(f"{arguments.action} needs -id and -namespace")
        elif arguments.action == "start":
            from kata.shim.start import start

            start(arguments)
        else:
            from kata.shim.delete import delete

            delete(arguments)
    except KataError as error:
        hint = f" ({error.hint})" if error.hint else ""
        os.write(2, f"containerd-shim-kata-v2: {error.message}{hint}\n".encode())
        os._exit(1)
    except OSError as error:
        os.write(2, f"containerd-shim-kata-v2: {error}\n".encode())
        os._exit(1)
    # Interpreter shutdown costs milliseconds that containerd would wait for.
    os._exit(0)
