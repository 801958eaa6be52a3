"""What a guest's kernel must have, must not have, and what container engines ask for.

The lists are the `.conf` files of `requirements/`: options in the format of a `.config`, under lines `## reason`.
`guest` is what this project needs; `engines` is what container engines look for on a host, which containers that run
an engine, or are started by one, may use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from kata.kernel_build.options import Finding, compare, parse

_REASON = "## "


@dataclass(frozen=True, slots=True)
class Requirements:
    """One list.

    Attributes:
        name: of the list.
        options: the value that each option must have.
        reasons: what each is for.
    """

    name: str
    options: Mapping[str, str]
    reasons: Mapping[str, str]

    def missing(self, found: Mapping[str, str], *, modules: bool = False) -> list[Finding]:
        """Where a configuration does not meet the list; `modules` as in `options.compare`."""
        return compare(self.options, found, self.reasons, modules=modules)


def read(name: str, text: str) -> Requirements:
    """A list from its text.

    Raises:
        InvalidArgument: a line is not understood.
    """
    options: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for part in text.split(f"\n{_REASON}"):
        reason, _, rest = part.removeprefix(_REASON).partition("\n")
        found = parse(rest, f"{name}.conf")
        options |= found
        reasons |= dict.fromkeys(found, reason.strip())
    return Requirements(name, options, reasons)


def requirements() -> tuple[Requirements, Requirements]:
    """What a guest needs, and what container engines ask for."""
    here = files(__package__).joinpath("requirements")
    guest, engines = (read(name, here.joinpath(f"{name}.conf").read_text()) for name in ("guest", "engines"))
    return guest, engines
