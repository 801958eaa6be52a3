"""`kata setup` and `kata unset` on a made host: what is changed, all of it or nothing, and taken back byte for byte."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kata.cli import check, engine_setup
from kata.cli.main import invoke
from kata.engines import host as engines
from kata.engines import record
from kata.engines.host import SHIM, Engine, Host
from kata.errors import FailedPrecondition, KataError, NotFound, ResourceExhausted, Unimplemented
from kata.linux import atomic_file

LAUNCHER = b"#!/usr/bin/python3 -IS\nfrom kata.shim.main import main\n"
CONTAINERD = "containerd github.com/containerd/containerd 1.6.20 x"
CONFIG = b"version = 2\n# a comment\n"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(
        path=str(tmp_path / "bin"),
        containerd_config=tmp_path / "etc/containerd/config.toml",
        docker_config=tmp_path / "etc/docker/daemon.json",
        crio_config=tmp_path / "etc/crio/crio.conf",
        crio_drop_ins=tmp_path / "etc/crio/crio.conf.d",
        bin=tmp_path / "bin",
        records=tmp_path / "var/lib/kata/setup",
    )
    for program, words in (("containerd", CONTAINERD), ("dockerd", "Docker version 26.1.5, build x")):
        write_program(tmp_path / "bin" / program, words)
    made.records.parents[1].mkdir(parents=True)
    made.containerd_config.parent.mkdir(parents=True)
    made.containerd_config.write_bytes(CONFIG)
    made.containerd_config.chmod(0o640)
    return made


def write_program(path: Path, words: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{words}'\n")
    path.chmod(0o755)


def listed(host: Host) -> dict[str, tuple[int, bytes | None]]:
    """All files of the host: mode and content."""
    root = host.records.parents[3]
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, None if path.is_dir() else path.read_bytes())
        for path in sorted(root.rglob("*"))
    }


def set_up(host: Host, *names: Engine) -> list[engines.Plan]:
    plans = engines.make(names, host, LAUNCHER)
    engines.carry_out(plans, host)
    return plans


def remove(host: Host, *names: Engine) -> None:
    engines.carry_out(engines.removal(names, host), host)


def test_everything_is_as_before_afterwards(host: Host) -> None:
    before = listed(host)
    set_up(host, Engine.CONTAINERD, Engine.DOCKER)
    assert b"runtimes.kata" in host.containerd_config.read_bytes()
    assert host.containerd_config.stat().st_mode & 0o777 == 0o640
    assert (host.bin / SHIM).read_bytes() == LAUNCHER
    assert os.access(host.bin / SHIM, os.X_OK)
    assert host.docker_config.exists()
    remove(host, Engine.CONTAINERD, Engine.DOCKER)
    assert listed(host) == before, "directories that were made are gone, too"


def test_twice_is_as_once(host: Host) -> None:
    set_up(host, Engine.CONTAINERD)
    once = listed(host)
    plans = set_up(host, Engine.CONTAINERD)
    assert all(plan.is_done for plan in plans)
    assert listed(host) == once


def test_an_upgrade_replaces_what_the_old_version_wrote(host: Host) -> None:
    set_up(host, Engine.CONTAINERD)
    newer = engines.make([Engine.CONTAINERD], host, LAUNCHER + b"# newer\n")
    assert [plan.name for plan in newer if not plan.is_done] == [engines.LAUNCHER]
    engines.carry_out(newer, host)
    assert (host.bin / SHIM).read_bytes() == LAUNCHER + b"# newer\n"
    remove(host, Engine.CONTAINERD)
    assert host.containerd_config.read_bytes() == CONFIG
    assert not (host.bin / SHIM).exists()


def test_the_launcher_stays_for_the_engine_that_is_left(host: Host) -> None:
    set_up(host, Engine.CONTAINERD)
    set_up(host, Engine.DOCKER)
    remove(host, Engine.CONTAINERD)
    assert (host.bin / SHIM).exists()
    assert host.containerd_config.read_bytes() == CONFIG
    remove(host, Engine.DOCKER)
    assert not (host.bin / SHIM).exists()


def test_what_others_add_meanwhile_stays(host: Host) -> None:
    set_up(host, Engine.CONTAINERD)
    config = host.containerd_config
    config.write_bytes(config.read_bytes() + b"[debug]\nlevel = 'debug'\n")
    set_up(host, Engine.CONTAINERD)
    remove(host, Engine.CONTAINERD)
    assert config.read_bytes() == CONFIG + b"[debug]\nlevel = 'debug'\n"


def test_what_was_edited_in_place_is_refused_and_left(host: Host) -> None:
    set_up(host, Engine.CONTAINERD)
    config = host.containerd_config
    config.write_bytes(config.read_bytes().replace(b"runtime_type", b"runtime_tipe"))
    before = listed(host)
    with pytest.raises(FailedPrecondition, match="was edited since"):
        remove(host, Engine.CONTAINERD)
    with pytest.raises(FailedPrecondition, match="was edited since"):
        set_up(host, Engine.CONTAINERD)
    assert listed(host) == before


def test_a_link_stays_one(host: Host, tmp_path: Path) -> None:
    real = tmp_path / "managed.toml"
    host.containerd_config.rename(real)
    host.containerd_config.symlink_to(real)
    set_up(host, Engine.CONTAINERD)
    assert host.containerd_config.is_symlink()
    assert b"runtimes.kata" in real.read_bytes()
    remove(host, Engine.CONTAINERD)
    assert real.read_bytes() == CONFIG


def test_a_shim_of_another_kata_is_not_taken_for_ours(host: Host) -> None:
    (host.bin / SHIM).write_bytes(b"\x7fELF" + bytes(100))
    before = listed(host)
    with pytest.raises(FailedPrecondition, match="another Kata is installed"):
        set_up(host, Engine.CONTAINERD)
    assert listed(host) == before


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_of_two_shims_the_one_that_engines_find_first_counts(host: Host, tmp_path: Path, first: str) -> None:
    """The other Kata's is in /usr/local/bin, say, and ours in /usr/bin."""
    theirs = tmp_path / "local"
    write_program(theirs / SHIM, "another Kata's")
    write_program(host.bin / SHIM, "from kata.shim.main import main")
    path = (str(theirs), host.path) if first == "theirs" else (host.path, str(theirs))
    both = replace(host, path=":".join(path))
    before = listed(host)
    if first == "theirs":
        with pytest.raises(FailedPrecondition, match=f"{theirs / SHIM} is not of this project"):
            set_up(both, Engine.CONTAINERD)
    else:
        set_up(both, Engine.CONTAINERD)
        remove(both, Engine.CONTAINERD)
    assert listed(host) == before


def test_a_shim_that_a_package_brought_is_used(host: Host) -> None:
    (host.bin / SHIM).write_bytes(LAUNCHER)
    set_up(host, Engine.CONTAINERD)
    remove(host, Engine.CONTAINERD)
    assert (host.bin / SHIM).read_bytes() == LAUNCHER


def test_engines_that_are_not_there_or_not_served(host: Host) -> None:
    with pytest.raises(NotFound, match="crio is not installed"):
        set_up(host, Engine.CRIO)
    write_program(host.bin / "podman", "podman version 5")
    with pytest.raises(Unimplemented, match="podman cannot use this runtime yet"):
        set_up(host, Engine.PODMAN)


def test_crio(host: Host) -> None:
    write_program(host.bin / "crio", "crio version 1.30.0")
    before = listed(host)
    plans = set_up(host, Engine.CRIO)
    assert any("not been tested" in note for plan in plans for note in plan.notes)
    assert str(host.bin / SHIM) in (host.crio_drop_ins / "50-kata.conf").read_text()
    remove(host, Engine.CRIO)
    assert listed(host) == before


def test_a_broken_configuration_stops_all_of_it(host: Host) -> None:
    host.docker_config.parent.mkdir()
    host.docker_config.write_text("{,}")
    before = listed(host)
    with pytest.raises(KataError, match="cannot understand"):
        set_up(host, Engine.CONTAINERD, Engine.DOCKER)
    assert listed(host) == before


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, ResourceExhausted), (errno.EROFS, FailedPrecondition)])
@pytest.mark.parametrize("fails_at", range(1, 6))
def test_a_write_that_fails_leaves_nothing_half_done(
    host: Host, monkeypatch: pytest.MonkeyPatch, fails_at: int, number: int, kind: type[KataError]
) -> None:
    """Written are, in this order: record and launcher, record and containerd's, record and Docker's."""
    before = listed(host)
    writes = iter(range(1, 100))
    real = atomic_file.Replacement.__enter__

    def failing(self: atomic_file.Replacement) -> object:
        if next(writes) == fails_at:
            raise OSError(number, os.strerror(number), "x")
        return real(self)

    monkeypatch.setattr(atomic_file.Replacement, "__enter__", failing)
    with pytest.raises(kind, match=f"cannot write .*: {os.strerror(number).lower()}"):
        set_up(host, Engine.CONTAINERD, Engine.DOCKER)
    assert listed(host) == before


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed_at", range(1, 7))
def test_whatever_was_done_when_it_was_killed_is_taken_back(
    host: Host, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    before = listed(host)
    writes = iter(range(1, 100))
    real = atomic_file.Replacement.__enter__

    def killing(self: atomic_file.Replacement) -> object:
        if next(writes) == killed_at:
            raise Killed
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(atomic_file.Replacement, "__enter__", killing)
        with pytest.raises(Killed):
            set_up(host, Engine.CONTAINERD, Engine.DOCKER)
    if killed_at % 2:
        set_up(host, Engine.CONTAINERD, Engine.DOCKER)
    remove(host, Engine.CONTAINERD, Engine.DOCKER)
    # The directory of records, if it was made and then killed before the first one, is all that stays.
    assert {name: listed(host)[name] for name in listed(host) if "lib/kata" not in name} == before
    assert not any(path.is_file() for path in host.records.parent.rglob("*"))


def test_a_file_that_changes_while_the_person_thinks(host: Host) -> None:
    plans = engines.make([Engine.CONTAINERD], host, LAUNCHER)
    host.containerd_config.write_bytes(CONFIG + b"oom_score = 1\n")
    before = listed(host)
    with pytest.raises(FailedPrecondition, match="has changed meanwhile"):
        engines.carry_out(plans, host)
    assert listed(host) == before


def test_a_damaged_record(host: Host) -> None:
    host.records.mkdir(parents=True)
    (host.records / "containerd.json").write_text("{")
    with pytest.raises(FailedPrecondition, match=r"containerd\.json is damaged") as caught:
        set_up(host, Engine.CONTAINERD)
    assert caught.value.hint
    assert record.load("docker", host.records) == record.Record()


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def _on_the_made_host(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine_setup, "Host", lambda: host)
        monkeypatch.setattr(engine_setup, "require_root", lambda command: None)

    def test_shows_asks_changes_and_says_what_to_run(self, host: Host, capsys: pytest.CaptureFixture[str]) -> None:
        assert invoke(["setup", "containerd", "--dry-run"]) == 0
        shown = capsys.readouterr().out
        assert "+[plugins." in shown
        assert f"+++ {host.containerd_config}" in shown
        assert host.containerd_config.read_bytes() == CONFIG

        assert invoke(["setup", "containerd"]) == 1
        assert "nothing was changed: standard input is no terminal\nhint: --yes" in capsys.readouterr().err
        assert host.containerd_config.read_bytes() == CONFIG

        assert invoke(["setup", "containerd", "--yes"]) == 0
        assert capsys.readouterr().out.endswith("containerd reads it when you run: systemctl restart containerd\n")
        assert invoke(["setup", "containerd", "--yes"]) == 0
        assert capsys.readouterr().out == "containerd is set up already\n"
        assert invoke(["unset", "--yes"]) == 0
        assert "-[plugins." in capsys.readouterr().out
        assert host.containerd_config.read_bytes() == CONFIG
        assert invoke(["unset", "all"]) == 0
        assert capsys.readouterr().out == "nothing was set up\n"

    def test_all_takes_what_is_there(self, host: Host, capsys: pytest.CaptureFixture[str]) -> None:
        write_program(host.bin / "podman", "podman version 5")
        assert invoke(["setup", "all", "--yes"]) == 0
        out, err = capsys.readouterr()
        assert "podman is left out" in err
        assert "systemctl reload docker" in out
        assert "crio" not in out

    def test_nothing_is_there(self, host: Host, capsys: pytest.CaptureFixture[str]) -> None:
        for program in ("containerd", "dockerd"):
            (host.bin / program).unlink()
        for arguments in (["setup", "all"], ["setup", "docker"]):
            assert invoke(arguments) == 1
            err = capsys.readouterr().err
            assert "installed" in err
            assert len(err.splitlines()) == 2, "one line and a hint"

    def test_another_configuration(self, host: Host, tmp_path: Path) -> None:
        other = tmp_path / "k3s.toml"
        other.write_bytes(CONFIG)
        assert invoke(["setup", "containerd", "--yes", "--config", str(other)]) == 0
        assert b"runtimes.kata" in other.read_bytes()
        assert host.containerd_config.read_bytes() == CONFIG
        assert invoke(["unset", "--yes"]) == 0
        assert other.read_bytes() == CONFIG

    def test_what_is_missing_on_the_host(
        self, host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = [
            check.Row("qemu", check.Status.FAILED, "not there", "install it"),
            check.Row("disk", check.Status.OK, "large"),
        ]
        monkeypatch.setattr(check, "check", lambda: iter(rows))
        assert invoke(["setup"]) == 1
        out = capsys.readouterr().out
        assert "not there" in out
        assert "large" not in out
        assert "apt-get install --no-install-recommends qemu-system-x86 erofs-utils" in out
        assert "containerd: not set up; run: kata setup containerd" in out
