"""Swap of the guest: a container uses more than its memory limit allows, and lives."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kata.runtime.devices.swap import SWAP_IN_BYTES, SWAPPINESS
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import BUSYBOX
from tests.support.leaks import TEST_PREFIX

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this")]

MIB = 1 << 20
#: Fills memory that is the container's, and reads it back.
FILL = "dd if=/dev/zero of=/fast/fill bs=1M count=128 2>/dev/null && wc -c </fast/fill && grep SwapTotal /proc/meminfo"


@pytest.fixture
def options(tmp_path: Path) -> tuple[str, ...]:
    configuration = tmp_path / "configuration.toml"
    configuration.write_text(
        f'[hypervisor.qemu]\ndefault_memory = 512\nenable_guest_swap = true\nguest_swap_path = "{tmp_path}/swap"\n'
    )
    return ("--runtime", RUNTIME, "--runtime-config-path", str(configuration))


def run(
    containerd: PrivateContainerd, options: tuple[str, ...], script: str, **annotations: int
) -> subprocess.CompletedProcess[str]:
    names = {"swappiness": SWAPPINESS, "total": SWAP_IN_BYTES}
    for name, value in annotations.items():
        options = (*options, "--annotation", f"{names[name]}={value}")
    flags = ("--memory-limit", str(64 * MIB), "--mount", "type=tmpfs,src=tmpfs,dst=/fast")
    command = ("run", "--rm", *options, *flags, BUSYBOX, unique_id(TEST_PREFIX), "sh", "-c", script)
    return containerd.ctr(*command, check=False)


def test_without_swap_it_is_killed(containerd: PrivateContainerd, options: tuple[str, ...]) -> None:
    done = run(containerd, options, FILL)
    assert done.returncode != 0
    assert str(128 * MIB) not in done.stdout


def test_with_swap_it_lives(containerd: PrivateContainerd, options: tuple[str, ...], tmp_path: Path) -> None:
    done = run(containerd, options, FILL, swappiness=60, total=192 * MIB)
    assert done.returncode == 0, done.stderr
    size, _, swap, _ = done.stdout.split()
    assert int(size) == 128 * MIB
    assert 127 << 10 <= int(swap) <= 128 << 10, "in KiB; a page of it is the kernel's"
    assert list((tmp_path / "swap").iterdir()) == [], "the file has no name"


def test_the_limit_of_both_holds(containerd: PrivateContainerd, options: tuple[str, ...]) -> None:
    assert run(containerd, options, FILL, swappiness=60, total=96 * MIB).returncode != 0


def test_what_cannot_be_is_told(containerd: PrivateContainerd, options: tuple[str, ...]) -> None:
    done = run(containerd, options, "true", swappiness=60, total=1 << 49)
    assert "has no room for" in done.stderr
    done = run(containerd, options, "true", swappiness=201)
    assert "swappiness: invalid number '201' (0 to 200)" in done.stderr
