"""What the guest's PID 1 begins with; what it then serves is tested in VMs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata.agent import config, init, main
from kata.agent.config import AgentConfig


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[AgentConfig]:
    """The settings with which the agent would serve; the image's parameters are in `tmp_path`/parameters."""
    found: list[AgentConfig] = []

    async def serve(settings: AgentConfig, *_: object, **__: object) -> None:
        found.append(settings)

    monkeypatch.setattr(init, "prepare", lambda: None)
    monkeypatch.setattr(config, "OF_IMAGE", str(tmp_path / "parameters"))
    monkeypatch.setattr(main, "set_up_logging", lambda _: None)
    monkeypatch.setattr(main, "serve", serve)
    monkeypatch.setattr(main, "power_off", lambda: None)
    return found


def with_command_line(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    read = main._read
    monkeypatch.setattr(main, "_read", lambda path: line if path == "/proc/cmdline" else read(path))


def test_an_image_sets_what_the_kernel_command_line_leaves_open(
    served: list[AgentConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parameters").write_text("agent.log=debug agent.debug_console=true\n")
    with_command_line(monkeypatch, "quiet agent.server_addr=virtio-serial://kata.rpc agent.log=error\n")
    main.run_as_init()
    assert served == [AgentConfig(log_level="ERROR", server_addr="virtio-serial://kata.rpc", debug_console=True)]


def test_an_image_need_not_set_anything(served: list[AgentConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    with_command_line(monkeypatch, "quiet\n")
    main.run_as_init()
    assert served == [AgentConfig()]
