"""A plugin of pytest: a test that fails leaves the logs of what it ran in a folder, which the run names at its end.

    build/failures/RUN/TEST/report.txt           what pytest says
                            containerd.log       since the test began; debug messages of its shims, with QMP, are in it
                            sandboxes/ID/*.log   console, shim and QEMU, also of sandboxes that have ended
                            scratch/             logs in the test's own directory

Tests that ran nothing of that leave nothing: pytest says it all. With several workers, what others' pods and networks
have logged at that time may be among it.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest

from kata.runtime.ledger.journal import STATE_ROOT
from tests.support import evidence
from tests.support.evidence import Evidence

#: Where the folders of all runs are, if it is another than usual.
_ROOT = "KATA_TEST_FAILURES_ROOT"
#: For the workers: the folder of the run, and where the logs of sandboxes are kept.
_FOLDER, _KEPT = "KATA_TEST_FAILURES", "KATA_TEST_KEPT"
_evidence = pytest.StashKey[Evidence]()


def pytest_configure(config: pytest.Config) -> None:
    if not _is_worker(config):
        root = os.environ.get(_ROOT)
        os.environ[_FOLDER] = str(evidence.new_run(Path(root) if root else evidence.FAILURES))
        _watch(config)
    kept = os.environ.get(_KEPT)
    # What the ids of tests begin with has the process of the worker in it (tests/support/leaks.py).
    others = re.compile(rf"t(?!{os.getpid()}-)\d+-")
    config.stash[_evidence] = Evidence(Path(os.environ[_FOLDER]), Path(kept) if kept else None, others)
    evidence.use(config.stash[_evidence])


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _watch(config: pytest.Config) -> None:
    """Keep the logs of sandboxes until the run ends, if this user may have any."""
    os.environ.pop(_KEPT, None)
    if os.geteuid() != 0:
        return
    kept = Path(tempfile.mkdtemp(prefix="kata-tests-", dir=Path(STATE_ROOT).parent))
    watcher = evidence.watch(Path(STATE_ROOT), kept)

    def end() -> None:
        watcher.kill()
        watcher.wait()
        shutil.rmtree(kept, ignore_errors=True)

    config.add_cleanup(end)
    os.environ[_KEPT] = str(kept)


@pytest.hookimpl(tryfirst=True)  # before fixtures
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[_evidence].begin()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        # A test that does not use this has no directory of its own, and gets none for this.
        scratch = getattr(item, "funcargs", {}).get("tmp_path")
        text = "\n\n".join([report.longreprtext, *(f"{title}\n{said}" for title, said in report.sections)])
        sandboxes = any(map(item.get_closest_marker, ("vm", "containerd", "root")))
        with suppress(OSError):  # of a full disk, which must not end the run
            item.config.stash[_evidence].save(item.nodeid.removeprefix("tests/"), text, scratch, sandboxes=sandboxes)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    folder = Path(os.environ[_FOLDER])
    if folder.is_dir():
        terminalreporter.write_sep("=", f"logs of failed tests are in {folder}")
