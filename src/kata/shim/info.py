"""`containerd-shim-kata-v2 -info`: how containerd 2 queries a runtime before it first uses it."""

from __future__ import annotations

import os

from kata.protocols.containerd import types_pb2
from kata.version import VERSION


def info() -> None:
    """Print a serialised RuntimeInfo; the options on standard input do not change it."""
    response = types_pb2.RuntimeInfo(name="io.containerd.kata.v2", version=types_pb2.RuntimeVersion(version=VERSION))
    os.write(1, response.SerializeToString())
