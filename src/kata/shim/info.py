"""`containerd-shim-kata-v2 -info`: how containerd 2 queries a runtime before it first uses it."""

from __future__ import annotations

import json

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from kata.errors import InvalidArgument
from kata.protocols.containerd import types_pb2
from kata.shim.config import load_config
from kata.shim.features import TYPE_URL, features
from kata.version import VERSION


def info(options: bytes) -> bytes:
    """Return a serialised RuntimeInfo.

    Args:
        options: the runtime's, as on standard input: a serialised `google.protobuf.Any`, or b"".

    Raises:
        InvalidArgument: the options cannot be decoded.
        KataError: the configuration that they name is invalid or missing.
    """
    try:
        chosen = Any.FromString(options)
    except DecodeError:
        raise InvalidArgument("standard input is not runtime options") from None
    told = features(seccomp=not load_config(options).config.runtime.disable_guest_seccomp)
    response = types_pb2.RuntimeInfo(
        name="io.containerd.kata.v2",
        version=types_pb2.RuntimeVersion(version=VERSION),
        options=chosen if options else None,
        features=Any(type_url=TYPE_URL, value=json.dumps(told).encode()),
    )
    return response.SerializeToString()
