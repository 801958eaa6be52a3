"""The private containerd itself: what was killed leaves nothing to whoever comes next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.containerd import PrivateContainerd, unique_id
from tests.support.leaks import TEST_PREFIX

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

SCRIPT = """
import os, sys
from tests.support.containerd import RUNTIME, PrivateContainerd
from tests.support.images import BUSYBOX, busybox_archive
containerd = PrivateContainerd()
containerd.import_image(busybox_archive(containerd.directory / "busybox.tar"))
containerd.ctr("run", "--detach", "--runtime", RUNTIME, BUSYBOX, sys.argv[1], "sleep", "600")
print(containerd.directory, flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_next_one_clears_what_a_killed_one_left(configuration: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, unique_id(TEST_PREFIX)],
        env={"KATA_CONF_FILE": str(configuration), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -9, killed.stderr
    directory = Path(killed.stdout.strip())
    assert directory.exists()
    with PrivateContainerd() as successor:
        assert not directory.exists()
        assert successor.ctr("tasks", "ls", "--quiet").stdout == ""
    assert not successor.directory.exists()


def test_one_that_is_in_use_is_left_alone(containerd: PrivateContainerd) -> None:
    with PrivateContainerd() as other:
        assert other.directory != containerd.directory
    assert containerd.ctr("version").returncode == 0
