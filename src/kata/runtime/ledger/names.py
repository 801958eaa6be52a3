"""Names of state directories: the sandbox's id, and the namespace of containerd in which alone that id is unique.

`box` is a sandbox of `kata run`, `box@k8s.io` one of containerd's. The character between them is in no id.

The shim's short-lived `start` and `delete` import this file, so it imports nothing that costs time.
"""

from __future__ import annotations

import os

from kata.errors import InvalidArgument
from kata.oci.ids import validate_id

_SEPARATOR = "@"
#: With it, the path of a socket in a state directory has less than the 108 bytes of unix(7).
_MAX_NAME = 79


def state_name(sandbox_id: str, namespace: str) -> str:
    """The name of the state directory of one of containerd's sandboxes.

    Raises:
        InvalidArgument: one of them is no id.
    """
    name = validate_id(sandbox_id) + _SEPARATOR + validate_id(namespace, "namespace")
    if len(name) <= _MAX_NAME:
        return name
    return sandbox_id + _SEPARATOR + digest(namespace)[: _MAX_NAME - len(sandbox_id) - 1]


def digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    # hashlib would load OpenSSL. The module's name changed in Python 3.12.
    try:
        from _sha2 import sha256  # type: ignore[import-not-found]
    except ImportError:
        from _sha256 import sha256  # type: ignore[import-not-found]

    return str(sha256(text.encode()).hexdigest())


def split(name: str) -> tuple[str, str]:
    """Id and namespace in the name of a state directory; the namespace is "" for `kata run`, or may be a hash."""
    sandbox_id, _, namespace = name.partition(_SEPARATOR)
    return sandbox_id, namespace


def validate_name(name: str) -> str:
    """Return the name of a state directory if it is one.

    Raises:
        InvalidArgument: it is not.
    """
    sandbox_id, separator, namespace = name.partition(_SEPARATOR)
    validate_id(sandbox_id, "sandbox id")
    if separator:
        validate_id(namespace, "namespace")
    return name


def find(sandbox: str, root: str) -> str:
    """The name of a sandbox's state directory, for a command line.

    Args:
        sandbox: its id, the first digits of one that a container engine has made up, or the name itself.
        root: where state directories are.

    Returns:
        The argument if there is none.

    Raises:
        InvalidArgument: it is no id, or several namespaces have a sandbox of that id.
    """
    validate_name(sandbox)
    names = os.listdir(root) if os.path.isdir(root) else []
    found = [name for name in sorted(names) if name.startswith(sandbox + _SEPARATOR)]
    if sandbox in names:
        return sandbox
    found = found or [name for name in sorted(names) if name.startswith(sandbox) and _is_random(split(name)[0])]
    if len(found) > 1:
        raise InvalidArgument(f"several sandboxes have the id {sandbox}", hint=f"use {' or '.join(found[:4])}")
    return found[0] if found else sandbox


def _is_random(sandbox_id: str) -> bool:
    """Whether nobody types this id: it has 64 hexadecimal digits."""
    return len(sandbox_id) == 64 and not set(sandbox_id) - set("0123456789abcdef")
