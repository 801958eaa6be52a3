"""The documents' commands, as somebody would paste them who reads (tests/support/documents.py)."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containerd import RUNTIME, PrivateContainerd
from tests.support.documents import Block, all_blocks, run
from tests.support.images import BUSYBOX, busybox_archive, busybox_rootfs
from tests.support.leaks import assert_nothing_left, snapshot

#: What the documents call their sandboxes.
NAMES = "(?:blue|db|files|hello|id|raw|vol|web)@default"
#: A program that lives until it is killed, whatever is done to it.
PROGRAM = "trap : HUP; while :; do sleep 1; done"


def cases(*settings: str) -> list[object]:
    return [
        pytest.param(block, id=block.name, marks=[pytest.mark.long] if "long" in block.attributes else [])
        for block in all_blocks()
        if block.setting in settings
    ]


@pytest.fixture(scope="module")
def directory(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the settings have in common: made once, since images take a second."""
    directory = tmp_path_factory.mktemp("reader")
    busybox_rootfs(directory / "srv/rootfs")
    (directory / "srv/data").mkdir()
    busybox_archive(directory / "busybox.tar")
    ctr = directory / "bin/ctr"
    ctr.parent.mkdir()
    ctr.write_text(f'#!/bin/sh\nexec {shlex.join(containerd.ctr_command())} "$@"\n')
    ctr.chmod(0o755)
    return directory


@pytest.fixture(autouse=True)
def nothing_left_of_readers(containerd: PrivateContainerd) -> Iterator[None]:
    """A block that leaves its sandbox running would fail the next one, of the same name."""
    before = snapshot(NAMES)
    yield
    for container in containerd.ctr("containers", "list", "--quiet").stdout.split():
        containerd.ctr("tasks", "delete", "--force", container, check=False)
        containerd.ctr("containers", "delete", container)
    # A shim on a busy host has been seen to wait 15 s for a cgroup that would not go.
    assert_nothing_left(before, NAMES, within_s=90.0)


@pytest.mark.root
@pytest.mark.parametrize("block", cases("host"))
def test_on_a_host(block: Block, directory: Path, configuration: Path) -> None:
    run(block, directory, conf_file=configuration)


@pytest.mark.containerd
@pytest.mark.parametrize("block", cases("run", "containerd"))
def test_with_images_and_containerd(block: Block, directory: Path, configuration: Path) -> None:
    run(block, directory, conf_file=configuration)


@pytest.mark.containerd
@pytest.mark.parametrize("block", cases("sandbox"))
def test_with_a_sandbox(block: Block, directory: Path, configuration: Path, containerd: PrivateContainerd) -> None:
    containerd.ctr("run", "--detach", "--runtime", RUNTIME, BUSYBOX, "web", "sh", "-c", PROGRAM)
    run(block, directory, conf_file=configuration)


@pytest.mark.containerd
def test_a_command_that_fails_fails_the_block(directory: Path, configuration: Path) -> None:
    block = Block("a.md:1", {"setting": "host"}, "kata inspect nobody-of-this-name\ntrue\n")
    with pytest.raises(AssertionError, match="nobody-of-this-name"):
        run(block, directory, conf_file=configuration)
