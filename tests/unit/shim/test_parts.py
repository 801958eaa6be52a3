"""The shim's small parts: launcher, log, status, metrics."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kata.errors import Code, FailedPrecondition, NotFound
from kata.protocols import agent_pb2
from kata.protocols.containerd import cgroups_v1_pb2, cgroups_v2_pb2
from kata.runtime.sandbox.grpc_status import to_status
from kata.shim import launcher as launcher_module
from kata.shim.launcher import NAME, write_launcher
from kata.shim.log import FifoHandler, LogfmtFormatter
from kata.shim.metrics import metrics
from kata.version import VERSION


class TestLauncher:
    """Pitfalls: `env python3` may be a wrapper of 100 ms, and a read-only installation has no compiled modules."""

    def test_names_its_interpreter_and_skips_site(self, tmp_path: Path) -> None:
        first = write_launcher(tmp_path / "bin").read_text().splitlines()[0]
        assert first == f"#!{os.path.realpath(sys.executable)} -IS"
        assert len(first) < 128, "the kernel reads no more of the line"

    def test_of_a_package_has_one_directory_and_the_systems_python(self) -> None:
        source = str(Path(launcher_module.__file__).resolve().parents[2])
        program = f"import sys; sys.path.insert(0, {source!r}); from kata.shim.launcher import launcher_text as text"
        command = [sys.executable, "-IS", "-c", f"{program}; print(text())"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert lines[0] == f"#!{sys.executable} -IS"
        assert f"sys.path[:0] = [{source!r}]" in lines

    def test_runs_in_an_empty_environment(self, tmp_path: Path) -> None:
        launcher = write_launcher(tmp_path)
        assert launcher.name == NAME == "containerd-shim-kata-v2", "containerd derives this name from the runtime's"
        done = subprocess.run([launcher, "-v"], env={}, cwd="/", capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stdout) == (0, f"containerd-shim-kata-v2: version {VERSION}\n")

    def test_compiles_whatever_the_environment_says(self, tmp_path: Path) -> None:
        import kata.shim.start as module

        cached = Path(module.__file__).parent / "__pycache__" / f"start.{sys.implementation.cache_tag}.pyc"
        cached.unlink(missing_ok=True)
        subprocess.run(
            [sys.executable, "-m", "kata.shim.launcher", tmp_path],
            env={"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(Path(module.__file__).parents[2])},
            check=True,
            capture_output=True,
            timeout=60,
        )
        assert cached.exists()

    def test_replaces_the_old_one_at_once(self, tmp_path: Path) -> None:
        old = write_launcher(tmp_path)
        with open(old) as running:
            write_launcher(tmp_path)
            assert running.read().startswith("#!"), "whoever has it open keeps it"
        assert os.listdir(tmp_path) == [NAME]


def record(message: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("kata.x", level, "file.py", 1, message, (), None)


class TestLog:
    def test_is_logfmt_on_one_line(self) -> None:
        line = LogfmtFormatter("box").format(record('two\nlines and "quotes"', logging.WARNING))
        assert "\n" not in line
        assert 'level=warning msg="two\\nlines and \\"quotes\\"" ' in line
        assert line.endswith(f"pid={os.getpid()} sandbox=box source=kata.x")
        assert line.startswith('time="2')

    def test_a_trace_stays_on_the_line(self) -> None:
        try:
            raise ValueError("inner")
        except ValueError:
            event = logging.LogRecord("n", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
        line = LogfmtFormatter("box").format(event)
        assert "\n" not in line
        assert "ValueError: inner" in line

    def test_never_waits_for_a_reader(self, tmp_path: Path) -> None:
        """A containerd that is away does not read; the sandbox goes on, and what fits is there when it is back."""
        path = tmp_path / "log"
        os.mkfifo(path)
        handler = FifoHandler(str(path))
        handler.setFormatter(LogfmtFormatter("box"))
        begin = time.monotonic()
        for number in range(3000):
            handler.emit(record(f"line {number}"))
        assert time.monotonic() - begin < 60
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        assert b'msg="line 0"' in os.read(reader, 4096)
        os.close(reader)
        os.close(handler._fd)

    @pytest.mark.parametrize("debug", [False, True])
    def test_without_a_fifo_there_is_no_log(self, tmp_path: Path, debug: bool) -> None:
        script = (
            "import logging, sys; from kata.shim.params import ShimParams; from kata.shim.log import setup_logging;"
            "setup_logging(ShimParams(sandbox_id='s', namespace='n', events_address='', options=b'', begun=0.0,"
            "debug=sys.argv[2] == 'True', bundle=sys.argv[1], environment={}));"
            "logging.error('unheard'); print(logging.getLogger().level)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path, str(debug)], capture_output=True, text=True, timeout=20
        )
        assert (done.stdout, done.stderr) == ("10\n" if debug else "20\n", "")


class TestStatus:
    def test_of_errors_on_purpose(self) -> None:
        assert to_status(NotFound("no x")) == (Code.NOT_FOUND, "no x")
        assert to_status(FailedPrecondition("no", hint="do y")) == (Code.FAILED_PRECONDITION, "no (do y)")

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
    def test_of_a_host_that_ran_out(self, number: int) -> None:
        code, message = to_status(OSError(number, os.strerror(number), "/run/kata/x"))
        assert code == Code.RESOURCE_EXHAUSTED
        assert os.strerror(number) in message
        assert "/run/kata/x" in message

    def test_of_a_bug(self, caplog: pytest.LogCaptureFixture) -> None:
        code, message = to_status(ZeroDivisionError("division by zero"))
        assert (code, message) == (Code.INTERNAL, "internal error: ZeroDivisionError: division by zero")
        assert "internal error" in caplog.text


class TestMetrics:
    @pytest.fixture
    def stats(self) -> agent_pb2.StatsContainerResponse:
        stats = agent_pb2.StatsContainerResponse()
        cgroup = stats.cgroup_stats
        cgroup.cpu_stats.cpu_usage.total_usage = 5_000_000
        cgroup.cpu_stats.throttling_data.throttled_periods = 3
        cgroup.memory_stats.usage.usage = 1 << 20
        cgroup.memory_stats.usage.limit = 1 << 30
        cgroup.memory_stats.stats["anon"] = 4096
        cgroup.memory_stats.stats["pgfault"] = 17
        cgroup.pids_stats.current = 2
        return stats

    def test_version_1(self, stats: agent_pb2.StatsContainerResponse) -> None:
        found = metrics(stats, unified=False)
        assert isinstance(found, cgroups_v1_pb2.Metrics)
        assert (found.cpu.usage.total, found.cpu.throttling.throttled_periods) == (5_000_000, 3)
        assert (found.memory.usage.usage, found.memory.usage.limit) == (1 << 20, 1 << 30)
        assert (found.memory.rss, found.memory.pg_fault, found.pids.current) == (4096, 17, 2)

    def test_version_2_counts_in_microseconds(self, stats: agent_pb2.StatsContainerResponse) -> None:
        found = metrics(stats, unified=True)
        assert isinstance(found, cgroups_v2_pb2.Metrics)
        assert (found.cpu.usage_usec, found.cpu.nr_throttled) == (5000, 3)
        assert (found.memory.usage, found.memory.usage_limit, found.memory.anon) == (1 << 20, 1 << 30, 4096)
        assert (found.memory.pgfault, found.pids.current) == (17, 2)
