"""`kata bundle`: what it says, and that a sandbox that hangs holds nothing up."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from kata.bugreport.plan import plan
from kata.cli import bundle
from kata.cli.main import invoke


@pytest.fixture
def state_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with one sandbox; `dmesg` and the like are not asked."""
    root = tmp_path / "run"
    directory = root / "box@k8s.io"
    directory.mkdir(parents=True)
    (directory / "console.log").write_text("hello\nDB_PASSWORD=hunter2\n")
    (directory / "config.json").write_text('{"process": {"env": ["X=hunter2"]}}')
    os.mkfifo(directory / "qemu.log")
    (root / "start-slot-0").touch()
    (root / "not a sandbox").mkdir()
    monkeypatch.setattr(bundle, "require_root", lambda command: None)
    look = bundle.look_at_host
    monkeypatch.setattr(bundle, "look_at_host", lambda config: look(config, root))
    monkeypatch.setattr(
        bundle, "plan", lambda host: (part for part in plan(host) if part.name.startswith(("sandboxes", "conf")))
    )
    return root


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str], list[str]]:
    code = invoke(["bundle", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def test_it_says_what_it_has_before_it_writes(
    capsys: pytest.CaptureFixture[str], state_root: Path, tmp_path: Path
) -> None:
    config = tmp_path / "configuration.toml"
    config.write_text("[runtime]\nenable_debug = true  # password\n")
    path = tmp_path / "report.tar.gz"
    code, dry, errors = outcome(capsys, "--dry-run", "--config", config, "-o", path)
    assert (code, errors, path.exists()) == (0, [], False)
    assert dry[0] == "The report has, without secrets:"
    assert [line.split()[0] for line in dry[1:]] == [f"configuration{config}", "sandboxes/box@k8s.io/console.log"]
    code, said, errors = outcome(capsys, "--config", config, "-o", path)
    assert (code, errors, said[: len(dry)], said[-1]) == (0, [], dry, str(path))
    with tarfile.open(path) as tar:
        console = tar.extractfile("report/sandboxes/box@k8s.io/console.log")
        assert console is not None
        assert console.read() == b"hello\nDB_PASSWORD=[removed]\n"
        assert [name for name in tar.getnames() if "config.json" in name or "qemu" in name] == []


def test_a_wrong_configuration_is_part_of_it(
    capsys: pytest.CaptureFixture[str], state_root: Path, tmp_path: Path
) -> None:
    config = tmp_path / "configuration.toml"
    config.write_text("[runtime]\nenable_debug = 7\n")
    assert f"configuration{config}" in outcome(capsys, "--dry-run", "--config", config)[1][1]


def test_a_sandbox_that_hangs_holds_nothing_up(
    capsys: pytest.CaptureFixture[str], state_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between the list and the reading, the file has become one that never ends.
    (state_root / "box@k8s.io/console.log").unlink()
    os.mkfifo(state_root / "box@k8s.io/console.log")
    monkeypatch.setattr(bundle, "_files", lambda directory: ["console.log"])
    monkeypatch.setattr(bundle, "_TIMEOUT_S", 1.0)
    code, said, errors = outcome(capsys, "-o", tmp_path / "report.tar.gz")
    assert (code, errors) == (0, [])
    assert "  sandboxes/box@k8s.io/console.log: tail did not end within 1 s" in said


def test_mistakes(capsys: pytest.CaptureFixture[str], state_root: Path, tmp_path: Path) -> None:
    assert outcome(capsys, "-o", "/nonexistent/x.tar.gz")[::2] == (
        1,
        [
            "kata: cannot write /nonexistent/x.tar.gz: no such file or directory",
            "hint: name another file with --output",
        ],
    )
    assert outcome(capsys, "-o", "x.zip")[2][0].startswith("kata: the name of the archive 'x.zip' ends with neither")


def test_only_root_can_read_all_of_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert outcome(capsys) == (1, [], ["kata: kata bundle needs root", "hint: run it with sudo"])
