"""PCI addresses in a container's environment, written by device plugins: the host's become this guest's.

PCIDEVICE_<resource> has a list of addresses, PCIDEVICE_<resource>_INFO a JSON document that has them somewhere
(Kubernetes' SR-IOV network device plugin).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from kata.linux import pci

#: In either case, and by itself: not within longer numbers.
_ADDRESS = re.compile(rf"(?<![0-9a-f:]){pci.ADDRESS.pattern}(?![0-9a-f])", re.IGNORECASE)


def translate(environment: Iterable[str], addresses: Mapping[str, str]) -> list[str]:
    """Replace the host's addresses in variables of PCI devices.

    Args:
        environment: variables, "NAME=VALUE" each.
        addresses: host address to guest address. Unknown addresses stay.
    """
    return [
        _translate(variable, addresses) if variable.startswith("PCIDEVICE_") else variable for variable in environment
    ]


def _translate(variable: str, addresses: Mapping[str, str]) -> str:
    name, separator, value = variable.partition("=")
    return name + separator + _ADDRESS.sub(lambda match: addresses.get(match[0].lower(), match[0]), value)
