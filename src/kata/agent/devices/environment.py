"""PCI addresses in a container's environment, which device plugins write there: the host's become this guest's.

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
    """The variables "NAME=VALUE", in those of PCI devices each known address of the host replaced, once.

    Args:
        addresses: host address to guest address. Others stay: there is nothing that they could become.
    """
    return [
        _translate(variable, addresses) if variable.startswith("PCIDEVICE_") else variable for variable in environment
    ]


def _translate(variable: str, addresses: Mapping[str, str]) -> str:
    name, separator, value = variable.partition("=")
    return name + separator + _ADDRESS.sub(lambda match: addresses.get(match[0].lower(), match[0]), value)
