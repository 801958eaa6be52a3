"""Command line of containerd-shim-kata-v2: `start`, `delete`, `-info`, `-v`.

containerd runs `start` and `delete` once for each container and waits for them, so this file and what it imports stay
free of everything that is slow to load; the daemon's modules are imported after the fork.
Flags are Go's: one or two dashes, value in the next argument or after "=" (containerd's runtime v2 shim contract).
"""

from __future__ import annotations

import os
import sys

from kata.errors import InvalidArgument, KataError

_VALUES = ("namespace", "id", "address", "publish-binary", "socket", "bundle")
_SWITCHES = ("debug", "v", "version", "info")


class Arguments:
    """The parsed command line."""

    def __init__(self) -> None:
        self.action = ""
        self.values = dict.fromkeys(_VALUES, "")
        self.switches = dict.fromkeys(_SWITCHES, False)

    @property
    def id(self) -> str:
        return self.values["id"]

    @property
    def namespace(self) -> str:
        return self.values["namespace"]


def parse(argv: list[str]) -> Arguments:
    """Parse the arguments after the program's name.

    Raises:
        InvalidArgument: unknown flag, missing value, unknown action.
    """
    arguments = Arguments()
    rest = list(argv)
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).lstrip("-").partition("=")
        if name in _SWITCHES:
            arguments.switches[name] = value not in ("false", "0") if equals else True
        elif name in _VALUES:
            if not equals:
                if not rest:
                    raise InvalidArgument(f"flag -{name} needs a value")
                value = rest.pop(0)
            arguments.values[name] = value
        else:
            raise InvalidArgument(f"unknown flag -{name}")
    if rest:
        arguments.action = rest.pop(0)
    if rest or arguments.action not in ("", "start", "delete"):
        raise InvalidArgument(f"unknown action {' '.join([arguments.action, *rest])!r}")
    return arguments


def main() -> None:
    """Run what the command line asks for; ends the process."""
    try:
        arguments = parse(sys.argv[1:])
        if arguments.switches["v"] or arguments.switches["version"]:
            from kata.version import VERSION

            os.write(1, f"containerd-shim-kata-v2: version {VERSION}\n".encode())
        elif arguments.switches["info"]:
            from kata.shim.info import info

            info()
        elif not arguments.action:
            raise InvalidArgument(
                "containerd-shim-kata-v2 is run by containerd: an action, start or delete, is missing"
            )
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
