from __future__ import annotations

from pathlib import Path

import pytest

from kata.agent import guesthooks
from kata.errors import InvalidArgument


def test_executable_files_by_kind_and_name(tmp_path: Path) -> None:
    for kind in ("prestart", "poststop", "other"):
        (tmp_path / kind).mkdir()
        for name in ("b", "a", "data"):
            (tmp_path / kind / name).write_text("")
            (tmp_path / kind / name).chmod(0o644 if name == "data" else 0o755)
        (tmp_path / kind / "directory").mkdir()
    (tmp_path / "poststart").write_text("no directory")
    found = guesthooks.find(str(tmp_path))
    assert {kind: [hook["args"] for hook in hooks] for kind, hooks in found.items()} == {
        kind: [[f"{tmp_path}/{kind}/{name}", kind] for name in ("a", "b")] for kind in ("prestart", "poststop")
    }


def test_no_path_and_a_path_with_nothing_are_no_hooks(tmp_path: Path) -> None:
    assert guesthooks.find("") == guesthooks.find(str(tmp_path / "none")) == {}


def test_a_relative_path_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        guesthooks.find("hooks")


def test_they_come_after_the_containers_own() -> None:
    spec = {"hooks": {"startContainer": [1], "poststop": [2]}}
    found = guesthooks.find("")
    assert guesthooks.add(spec, found) is spec
    added = guesthooks.add(spec, {"poststop": [{"path": "/p"}], "prestart": [{"path": "/q"}]})
    assert added["hooks"] == {
        "startContainer": [1],
        "poststop": [2, {"path": "/p"}],
        "prestart": [{"path": "/q"}],
    }
    assert spec == {"hooks": {"startContainer": [1], "poststop": [2]}}
