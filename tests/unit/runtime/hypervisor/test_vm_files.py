"""What is missing is said before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kata.errors import FailedPrecondition, NotFound
from kata.runtime.hypervisor.base import VmPlan
from kata.runtime.hypervisor.qemu.vm import QemuVm


@pytest.fixture
def host(tmp_path: Path, make_plan: Callable[..., VmPlan]) -> Callable[..., VmPlan]:
    """Makes a plan whose files all exist, but for what the arguments replace."""
    (tmp_path / "file").write_bytes(b"content")
    present = {
        "vmm": Path("/bin/true"),
        "kernel": tmp_path / "file",
        "initrd": tmp_path / "file",
        "image": tmp_path / "file",
        "run_dir": tmp_path,
        "share_dir": tmp_path,
    }
    return lambda **changes: make_plan(**(present | changes))


@pytest.mark.parametrize(
    ("what", "hint"),
    [
        ("vmm", "install"),
        ("kernel", "kata image build"),
        ("initrd", "kata image build"),
        ("image", "kata image build"),
        ("run_dir", None),
        ("share_dir", None),
    ],
)
async def test_missing(host: Callable[..., VmPlan], tmp_path: Path, what: str, hint: str | None) -> None:
    vm = QemuVm(host(**{what: tmp_path / "absent"}))
    with pytest.raises(NotFound) as caught:
        await vm.start()
    assert str(tmp_path / "absent") in caught.value.message
    assert caught.value.hint is None if hint is None else hint in (caught.value.hint or "")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert vm.pid == 0


@pytest.mark.parametrize("what", ["vmm", "kernel", "initrd", "image"])
async def test_a_directory_is_no_file(host: Callable[..., VmPlan], tmp_path: Path, what: str) -> None:
    with pytest.raises(NotFound):
        await QemuVm(host(**{what: tmp_path})).start()


async def test_qemu_has_to_be_executable(host: Callable[..., VmPlan], tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not an executable file"):
        await QemuVm(host(vmm=tmp_path / "file")).start()


async def test_a_vm_that_does_not_run(host: Callable[..., VmPlan]) -> None:
    vm = QemuVm(host(channels=("kata.rpc",)))
    assert vm.console_tail() == ""
    assert await vm.stop() is None
    vm.kill()
    with pytest.raises(FailedPrecondition, match="does not run"):
        await vm.wait()
    with pytest.raises(FailedPrecondition, match=r"channel kata\.rpc of abc is unknown"):
        vm.channel("kata.rpc")
