"""Collecting with deadlines, and the archive: whatever a part does, the report ends and has no secret."""

from __future__ import annotations

import os
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest

from kata.bugreport import archive
from kata.bugreport.collect import Collected, collect
from kata.bugreport.plan import Host, Part, is_reported, plan
from kata.bugreport.secrets import REMOVED
from kata.errors import AlreadyExists, InvalidArgument, ResourceExhausted
from kata.linux import mount
from kata.zstd import ZstdFile


def shell(script: str, *, timeout_s: float = 20.0, limit: int = 1 << 20, toml: bool = False) -> Part:
    return Part("part", "a test", ("sh", "-c", script), timeout_s, limit, toml)


def host(state_root: Path = Path("/run/kata")) -> Host:
    return Host(
        kata=("/opt/kata/bin/kata",),
        configuration=[Path("/etc/kata-containers/configuration.toml")],
        config_option=("--config", "/etc/kata-containers/configuration.toml"),
        containerd_configuration=[Path("/etc/containerd/config.toml")],
        state_root=state_root,
        sandboxes={"box@k8s.io": ["console.log", "ledger"], "run-1": ["timings.json"]},
    )


class TestPlan:
    def test_has_each_file_once_and_within_the_archive(self) -> None:
        names = [part.name for part in plan(host())]
        assert len(set(names)) == len(names)
        assert not any(PurePath(name).is_absolute() or ".." in PurePath(name).parts for name in names)
        assert archive.CONTENTS not in names

    def test_has_what_a_report_needs(self) -> None:
        parts = {part.name: part for part in plan(host())}
        assert set(parts) >= {
            "env.json",
            "check.json",
            "timings.txt",
            "configuration/etc/kata-containers/configuration.toml",
            "sandboxes/box@k8s.io/console.log",
            "sandboxes/box@k8s.io/ledger",
            "sandboxes/run-1/timings.json",
            "containerd/etc/containerd/config.toml",
            "containerd/log.txt",
            "host/kernel-log.txt",
        }
        assert parts["containerd/etc/containerd/config.toml"].toml
        assert parts["env.json"].argv[-2:] == ("--config", "/etc/kata-containers/configuration.toml")

    def test_every_part_has_a_deadline_and_a_limit(self) -> None:
        assert all(0 < part.timeout_s <= 120 and 0 < part.limit <= 8 << 20 for part in plan(host()))

    def test_no_spec_is_in_it(self) -> None:
        names = [
            "ledger",
            "console.log",
            "console.log.1",
            "qemu.log",
            "timings.json",
            "config.json",
            "shim-monitor.sock",
        ]
        assert [name for name in names if is_reported(name)] == names[:5]


class TestCollect:
    def test_what_a_program_prints_without_its_secrets(self) -> None:
        one = collect(shell("echo a; echo DB_PASSWORD=hunter2; echo said >&2"))
        assert (one.content, one.removed, one.problem) == (f"a\nDB_PASSWORD={REMOVED}\n".encode(), 1, "")

    def test_one_that_hangs_is_killed_with_what_it_started(self, tmp_path: Path) -> None:
        begin = time.monotonic()
        one = collect(shell(f"echo begun; sleep 300 & echo $! > {tmp_path}/pid; wait", timeout_s=2.0))
        assert time.monotonic() - begin < 60
        assert (one.content, one.problem) == (b"begun\n", "sh did not end within 2 s")
        deadline = time.monotonic() + 20
        while os.path.exists(f"/proc/{int((tmp_path / 'pid').read_text())}/ns/pid"):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def test_one_that_leaves_its_output_open(self) -> None:
        assert collect(shell("sleep 300 & echo gone", timeout_s=1.0)).content == b"gone\n"

    def test_one_that_closes_its_output_and_goes_on(self) -> None:
        one = collect(shell("echo a; exec >&- 2>&-; sleep 300", timeout_s=1.0))
        assert (one.content, one.problem) == (b"a\n", "sh ended with status -9")

    def test_a_file_thatnever_ends(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        part = Part("fifo", "", ("tail", "-c", "9", "--", str(tmp_path / "fifo")), 0.5)
        assert collect(part) == Collected(part, None, 0, "tail did not end within 0.5 s")

    def test_a_flood_is_cut(self) -> None:
        one = collect(shell("yes", limit=100 << 10))
        assert one.content is not None
        assert (len(one.content), one.problem) == (100 << 10, "the rest after 100 KiB is left out")

    def test_a_failure_is_told_and_its_output_is_kept(self) -> None:
        one = collect(shell("echo half; echo first >&2; echo token=abcdef >&2; exit 3"))
        assert (one.content, one.problem) == (b"half\n", f"sh ended with status 3: token={REMOVED}")
        assert collect(shell("yes >&2", timeout_s=1.0)).problem == "sh did not end within 1 s"

    def test_what_is_not_there(self) -> None:
        part = Part("x", "", ("/nonexistent",))
        assert collect(part) == Collected(part, None, 0, "/nonexistent is not installed")

    def test_what_is_empty_is_no_problem(self) -> None:
        part = shell("true")
        assert collect(part) == Collected(part, b"", 0, "")
        assert collect(shell("true", toml=True)).content == b""

    def test_there_is_an_end_to_all_of_it(self) -> None:
        one = collect(shell("echo a"), until=time.monotonic() - 1)
        assert (one.content, one.problem) == (None, "the report took too long")
        assert collect(shell("sleep 300"), until=time.monotonic() + 1).problem == "sh did not end within 1 s"

    def test_toml_is_read_and_what_is_none_stays_out(self) -> None:
        one = collect(shell("printf '[a.auth]\\nx = \"hunter2\"\\n[b]\\ny = 1 # hunter2\\n'", toml=True))
        assert (one.content, one.removed) == (f'[a]\nauth = "{REMOVED}"\n\n[b]\ny = 1\n'.encode(), 1)
        broken = collect(shell("printf 'password = \\nx = hunter2'", toml=True))
        assert broken.content is None
        assert broken.problem.startswith("no TOML: ")
        assert "hunter2" not in broken.problem

    def test_bytes_that_are_no_text(self) -> None:
        assert collect(shell("printf '\\377x'")).content == b"\\xffx"


def collected(content: bytes | None = b"text", problem: str = "", name: str = "a/b") -> Collected:
    return Collected(Part(name, "a test", ("true",)), content, 0, problem)


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) if path.suffix == ".gz" else tarfile.open(fileobj=ZstdFile(path), mode="r|") as tar:
        return {member.name: (tar.extractfile(member) or sys.stdin.buffer).read().decode() for member in tar}


class TestArchive:
    @pytest.mark.parametrize("suffix", ["tar.gz", "tar.zst"])
    def test_has_one_directory_and_says_what_is_in_it(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"report.{suffix}"
        told: list[Collected] = []
        parts = [collected(), collected(None, "dmesg is not installed", "c")]
        archive.write(path, iter(parts), told.append)
        assert told == parts
        found = contents(path)
        assert set(found) == {"report/a/b", "report/CONTENTS.txt"}
        assert found["report/a/b"] == "text"
        rows = found["report/CONTENTS.txt"].splitlines()
        assert rows[2].split() == ["4", "a/b", "a", "test"]
        assert rows[3].endswith("(dmesg is not installed)")
        assert path.stat().st_mode & 0o777 == 0o600
        assert os.listdir(tmp_path) == [path.name]

    def test_its_name_is_checked_first(self, tmp_path: Path) -> None:
        never = map(pytest.fail, ["nothing is collected"])
        with pytest.raises(InvalidArgument, match=r"'x.zip' ends with neither"):
            archive.write(tmp_path / "x.zip", never, print)
        (tmp_path / "x.tar.gz").symlink_to("nowhere")
        with pytest.raises(AlreadyExists, match="exists"):
            archive.write(tmp_path / "x.tar.gz", never, print)
        with pytest.raises(ResourceExhausted, match="no such file or directory"):
            archive.write(tmp_path / "none/x.tar.gz", never, print)

    def test_an_interruption_leaves_nothing(self, tmp_path: Path) -> None:
        def parts() -> Iterator[Collected]:
            yield collected()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            archive.write(tmp_path / "x.tar.gz", parts(), lambda one: None)
        assert os.listdir(tmp_path) == []

    @pytest.mark.root
    @pytest.mark.parametrize("suffix", ["tar.gz", "tar.zst"])
    def test_a_full_disk_leaves_nothing(self, tmp_path: Path, suffix: str) -> None:
        mount.mount("none", str(tmp_path), "tmpfs", 0, "size=64k")
        try:
            parts = (collected(os.urandom(1 << 20), name=str(number)) for number in range(3))
            with pytest.raises(ResourceExhausted, match=rf"x.{suffix}: no space left on device"):
                archive.write(tmp_path / f"x.{suffix}", parts, lambda one: None)
            assert os.listdir(tmp_path) == []
        finally:
            mount.umount(str(tmp_path))
