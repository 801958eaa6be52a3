"""The shim's command line, parsed by hand: importing argparse would take longer than all of `start`.

Flags are Go's: one or two dashes, the value in the next argument or after "=" (containerd,
core/runtime/v2/README.md, "Commands").
"""

from __future__ import annotations

from kata.errors import InvalidArgument

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
        """The container's id."""
        return self.values["id"]

    @property
    def namespace(self) -> str:
        """The container's namespace in containerd."""
        return self.values["namespace"]


def parse(argv: list[str]) -> Arguments:
    """Parse the arguments that follow the program's name.

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
