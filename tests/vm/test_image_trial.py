"""The boot of an image before it becomes the current one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from kata.cli.image_trial import trial_boot
from kata.errors import FailedPrecondition, NotFound
from kata.osbuilder import store

pytestmark = [pytest.mark.vm, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A directory with the files of the current image, each of which a test may replace."""
    try:
        current = store.find()
    except NotFound as error:
        pytest.skip(f"{error}: {error.hint}")
    for path in (current.kernel, current.initrd, current.rootfs):
        if path:
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def test_a_guest_whose_agent_answers_passes(image: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trial_boot(image)
    assert "cannot release" not in capfd.readouterr().err


def test_a_guest_that_does_not_reach_its_root_is_told(image: Path) -> None:
    """The initrd names no modules that it could load."""
    initrd = (image / "initrd").read_bytes()
    order = re.search(rb"modules/order\0+([^\0]+)", initrd)
    assert order
    replace(image / "initrd", initrd.replace(order[1], b"\n" * len(order[1])))
    with pytest.raises(FailedPrecondition, match=r"the guest does not boot: .*kata-init: cannot load") as caught:
        trial_boot(image)
    assert "the current image has not been changed" in str(caught.value.hint)


def test_what_is_no_kernel_is_told(image: Path) -> None:
    replace(image / "vmlinux", b"\x7fELF" + bytes(4096))
    with pytest.raises(FailedPrecondition, match="the guest does not boot"):
        trial_boot(image)


def test_a_kernel_that_panics_is_told_with_its_last_words(image: Path) -> None:
    """The real one, which looks for its first process where there is none."""
    content = (image / "vmlinux").read_bytes()
    assert content.count(b"/init\0") > 0
    replace(image / "vmlinux", content.replace(b"/init\0", b"/lost\0"))
    with pytest.raises(FailedPrecondition, match=r"the guest does not boot: .*Kernel panic"):
        trial_boot(image)
