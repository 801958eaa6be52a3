from __future__ import annotations

from kata.runtime.hypervisor.kernel_end import why_kernel_ended


def test_what_the_kernel_says_of_a_damaged_block_is_found() -> None:
    said = "device-mapper: verity: 254:0: data block 12 is corrupted"
    console = f"kata-agent 0.1.0\n[    3.2] {said}\r\nKernel panic - not syncing: dm-verity device corrupted\n"
    assert why_kernel_ended(console) == f"its root image is damaged, or has been changed: {said}"


def test_a_panic_is_found_before_its_trace() -> None:
    said = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"
    assert why_kernel_ended(f"[ 1.0] {said}\n" + "[ 1.0] trace\n" * 50) == f"its kernel could not go on: {said}"


def test_an_end_without_a_reason_has_none_and_a_long_one_is_cut() -> None:
    assert why_kernel_ended("") == why_kernel_ended("[ 1.0] reboot: Power down\n") == ""
    assert len(why_kernel_ended("Kernel panic - not syncing: " + "x" * 10_000)) < 300
