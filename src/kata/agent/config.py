"""The agent's settings, from the kernel command line and the environment.

Names, forms and defaults are Kata's (`agent.*` on the kernel command line; KATA_AGENT_* in the environment, which
wins). Unknown parameters are returned rather than refused: a newer host must be able to start an older guest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kata.errors import InvalidArgument

#: Of the guest image: parameters as on the kernel command line, which wins.
OF_IMAGE = "/etc/kata-agent.parameters"

LEVELS = {
    "fatal": "CRITICAL", "panic": "CRITICAL", "critical": "CRITICAL", "error": "ERROR", "warn": "WARNING",
    "warning": "WARNING", "info": "INFO", "debug": "DEBUG", "trace": "DEBUG",
}  # fmt: skip

_EMULATED_HOTPLUG_TIMEOUT_S = 30.0
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class AgentConfig:
    """How this agent runs.

    Attributes:
        log_level: name of a level of `logging`.
        server_addr: where to listen, e.g. "vsock://-1:1024" (see kata.agent.transports).
        container_pipe_size: bytes of the pipes of a container's stdio; 0 leaves the choice to the agent.
        hotplug_timeout: seconds that hot-plugged devices may take to appear; if it is not set, more where the vCPUs are
            emulated, since a device takes some hundred milliseconds there on an idle host, and seconds on a busy one.
        debug_console: whether to offer a shell to the host.
        debug_console_vport: the vsock port of that shell; 0 for the virtio-serial port of the debug console.
        emulated: whether the vCPUs are emulated: code that was executed before is faster at the same addresses.
        trace: whether to make spans of the calls that the host traces; it may also ask for that later.
        warm_up: whether to run a container before listening, to be saved in a template afterwards.
        unknown: names of parameters that begin with "agent." and are not known here.
    """

    log_level: str = "INFO"
    server_addr: str = "vsock://-1:1024"
    container_pipe_size: int = 0
    hotplug_timeout: float = 3.0
    debug_console: bool = False
    debug_console_vport: int = 0
    emulated: bool = False
    trace: bool = False
    warm_up: bool = False
    unknown: tuple[str, ...] = field(default=())


def parse_bool(text: str) -> bool:
    """Parse "true", "false", or an integer of which only 0 is false.

    Raises:
        ValueError: anything else.
    """
    if text in ("true", "false"):
        return text == "true"
    return int(text) != 0


def parse_duration(text: str) -> float:
    """Parse a number ("3") or a number with a unit ("500ms", "2m") into seconds.

    Raises:
        ValueError: it is not a number, or negative.
    """
    digits = text.rstrip("".join(_UNITS)) if text else ""
    unit = text[len(digits) :] or "s"
    seconds = float(digits) * _UNITS.get(unit, math.nan)
    if not 0 <= seconds < math.inf:
        raise ValueError(text)
    return seconds


def _parse_level(text: str) -> str:
    if text not in LEVELS:
        raise ValueError(text)
    return LEVELS[text]


def _parse_size(text: str) -> int:
    size = int(text)
    if not 0 <= size < 1 << 31:
        raise ValueError(text)
    return size


#: Parameters of the kernel command line: the attribute and how its text is read.
PARAMETERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "agent.log": ("log_level", _parse_level),
    "agent.server_addr": ("server_addr", str),
    "agent.container_pipe_size": ("container_pipe_size", _parse_size),
    "agent.hotplug_timeout": ("hotplug_timeout", parse_duration),
    "agent.emulated": ("emulated", lambda text: parse_bool(text or "true")),
    "agent.warm_up": ("warm_up", lambda text: parse_bool(text or "true")),
    "agent.trace": ("trace", lambda text: parse_bool(text or "true")),
    "agent.debug_console": ("debug_console", lambda text: parse_bool(text or "true")),
    "agent.debug_console_vport": ("debug_console_vport", _parse_size),
}
_ENVIRONMENT = {
    "KATA_AGENT_SERVER_ADDR": "agent.server_addr",
    "KATA_AGENT_LOG_LEVEL": "agent.log",
    "KATA_AGENT_TRACING": "agent.trace",
}


def parse(command_line: str, environment: Mapping[str, str] | None = None) -> AgentConfig:
    """The settings in a kernel command line; the last of two equal parameters wins, the environment over both.

    Raises:
        InvalidArgument: a known parameter has an invalid value.
    """
    words = [word.partition("=") for word in command_line.split() if word.startswith("agent.")]
    parameters = [(name, value) for name, _, value in words]
    parameters += [(_ENVIRONMENT[name], value) for name, value in (environment or {}).items() if name in _ENVIRONMENT]
    known: dict[str, Any] = {}
    unknown: list[str] = []
    for name, value in parameters:
        if name not in PARAMETERS:
            unknown.append(name)
            continue
        attribute, convert = PARAMETERS[name]
        try:
            known[attribute] = convert(value)
        except ValueError as error:
            raise InvalidArgument(f"invalid value {value!r} of kernel parameter {name}") from error
    if known.get("emulated"):
        known.setdefault("hotplug_timeout", _EMULATED_HOTPLUG_TIMEOUT_S)
    return replace(AgentConfig(), **known, unknown=tuple(unknown))
