"""PCI addresses, which name a function of a device on one host: "0000:05:1f.0" is domain, bus, slot, function.

Source: the kernel's Documentation/ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

import re

#: As sysfs writes it, in lower case.
ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")


def is_address(text: str) -> bool:
    """Whether this is a full PCI address, in lower case."""
    return ADDRESS.fullmatch(text) is not None
