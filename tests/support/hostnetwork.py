"""What is configured in a network namespace: addresses, routes, rules and sysctls, to be compared before and after."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kata.linux import namespaces

_LISTS = ("address show", "-4 route show table all", "-6 route show table all", "-4 rule show", "-6 rule show")
_SYSCTLS = Path("/proc/sys/net")
#: Counters and random numbers.
_CHANGING = {"nf_conntrack_count", "stable_secret", "fib_multipath_hash_seed"}


@contextmanager
def alone() -> Iterator[None]:
    """Have this thread, and all it starts, in a host's network of its own: other workers' tests change the real one."""
    with namespaces.inside_new("net"):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield


def configuration() -> dict[str, str]:
    """What is configured in this process's network namespace, and what an interface itself is left out of."""
    found = {
        what: subprocess.run(["ip", "-oneline", *what.split()], check=True, capture_output=True, text=True).stdout
        for what in _LISTS
    }
    for directory, _, names in os.walk(_SYSCTLS):
        for name in set(names) - _CHANGING:
            try:
                found[f"{directory}/{name}"] = Path(directory, name).read_text(encoding="ascii")
            except (OSError, ValueError):
                continue  # only written to, or gone with its interface
    return found
