"""How disks are read and written, where the configuration leaves it to the host."""

from __future__ import annotations

import ctypes
import errno

import pytest

from kata.linux import io_uring
from kata.runtime.devices.aio import decide, of_this_host


@pytest.mark.parametrize(
    ("accelerator", "allowed", "direct", "expected"),
    [
        ("kvm", True, False, "io_uring"),
        ("kvm", True, True, "io_uring"),
        ("kvm", False, True, "native"),
        ("kvm", False, False, "threads"),
        ("tcg", True, True, "threads"),
    ],
)
def test_auto(accelerator: str, allowed: bool, direct: bool, expected: str) -> None:
    assert decide("auto", accelerator, io_uring_allowed=allowed, direct=direct) == expected


@pytest.mark.parametrize("configured", ["threads", "native", "io_uring"])
def test_the_configurations_word_counts(configured: str) -> None:
    assert decide(configured, "kvm", io_uring_allowed=False, direct=False) == configured


@pytest.mark.parametrize(("result", "allowed"), [(-1, False), (0, True)])
def test_the_kernel_is_asked_where_it_matters(result: int, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    closed: list[int] = []

    class Libc:
        def syscall(self, number: int, *_: object) -> int:
            asked.append(number)
            ctypes.set_errno(errno.EPERM)
            return result

    monkeypatch.setattr(io_uring, "LIBC", Libc())
    monkeypatch.setattr("kata.linux.io_uring.os.close", closed.append)
    assert of_this_host("auto", "tcg", direct=False) == "threads"
    assert of_this_host("native", "kvm", direct=True) == "native"
    assert asked == []
    assert of_this_host("auto", "kvm", direct=False) == ("io_uring" if allowed else "threads")
    assert asked == [425]
    assert closed == ([result] if allowed else []), "the ring is closed"
