from __future__ import annotations

import pytest

from kata.agent.config import AgentConfig, parse, parse_bool, parse_duration
from kata.errors import InvalidArgument


def test_defaults_are_katas() -> None:
    assert parse("console=ttyS0 quiet") == AgentConfig()
    assert AgentConfig().server_addr == "vsock://-1:1024"


def test_everything_at_once() -> None:
    line = (
        "root=/dev/vda agent.log=debug agent.server_addr=virtio-serial://kata.rpc agent.container_pipe_size=65536 "
        "agent.hotplug_timeout=500ms agent.debug_console agent.debug_console_vport=1026 agent.trace "
        "agent.cdh_api_timeout=50"
    )
    assert parse(line) == AgentConfig(
        log_level="DEBUG",
        server_addr="virtio-serial://kata.rpc",
        container_pipe_size=65536,
        hotplug_timeout=0.5,
        debug_console=True,
        debug_console_vport=1026,
        trace=True,
        unknown=("agent.cdh_api_timeout",),
    )


def test_devices_may_take_longer_to_appear_under_emulation() -> None:
    assert [parse(line).hotplug_timeout for line in ("", "agent.emulated", "agent.emulated=false")] == [3, 30, 3]
    assert parse("agent.hotplug_timeout=1s agent.emulated").hotplug_timeout == 1


def test_the_last_wins_and_the_environment_over_all() -> None:
    line = "agent.log=debug agent.log=error"
    assert parse(line).log_level == "ERROR"
    assert parse(line, {"KATA_AGENT_LOG_LEVEL": "warn", "KATA_OTHER": "x"}).log_level == "WARNING"
    assert parse("", {"KATA_AGENT_SERVER_ADDR": "unix:///x"}).server_addr == "unix:///x"
    assert not parse("agent.trace=true", {"KATA_AGENT_TRACING": "false"}).trace


@pytest.mark.parametrize(
    "word",
    [
        "agent.log=loud",
        "agent.container_pipe_size=-1",
        "agent.container_pipe_size=many",
        "agent.hotplug_timeout=soon",
        "agent.hotplug_timeout=",
        "agent.debug_console=maybe",
    ],
)
def test_bad_values_are_named(word: str) -> None:
    with pytest.raises(InvalidArgument, match=word.partition("=")[0]):
        parse(word)


def test_bool_forms() -> None:
    assert [parse_bool(text) for text in ("true", "false", "0", "1", "7")] == [True, False, False, True, True]
    with pytest.raises(ValueError):
        parse_bool("yes")


def test_duration_forms() -> None:
    assert [parse_duration(text) for text in ("3", "3s", "500ms", "2m", "1.5s")] == [3, 3, 0.5, 120, 1.5]
    for bad in ("", "s", "3x", "-1s", "nan", "inf"):
        with pytest.raises(ValueError):
            parse_duration(bad)
