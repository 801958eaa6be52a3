"""The configuration of a sandbox, as the runtime options that containerd passes choose it.

The daemon needs it before it has loaded a protobuf library.
"""

from __future__ import annotations

from pathlib import Path

from kata.errors import KataError
from kata.runtime.config.loader import Loaded, load
from kata.runtime.config.settings import Config
from kata.shim.bootstrap import runtime_config


def config_if_valid(options: bytes) -> Config | None:
    """As `load_config`; None where that fails: it is reported when containerd asks for the sandbox."""
    try:
        return load_config(options).config
    except KataError:
        return None


def load_config(options: bytes) -> Loaded:
    """Load the configuration that the options name, or the default one.

    Args:
        options: a serialised `google.protobuf.Any` of the runtime's options, or b"".

    Raises:
        InvalidArgument: the options cannot be decoded.
        KataError: as `kata.runtime.config.loader.load`.
    """
    path, body = runtime_config(options)
    if path:
        return load(Path(path))
    return load(body=body or None)
