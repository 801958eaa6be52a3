"""KVM is judged by what it says, without a VM being created."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kata.runtime.hypervisor.kvm import cpu_flags, missing_features, obstacle

EDX_1 = 1 << 6 | 1 << 9 | 1 << 26
ECX_1 = 1 << 0 | 1 << 13
LONG_MODE = 1 << 29


def cpuid(*entries: tuple[int, int, int], index: int = 0, count: int | None = None) -> bytes:
    """A struct kvm_cpuid2 with entries of (function, ecx, edx)."""
    body = b"".join(struct.pack("=7I12x", function, index, 0, 0, 0, ecx, edx) for function, ecx, edx in entries)
    return struct.pack("=II", len(entries) if count is None else count, 0) + body


def test_a_sane_processor_lacks_nothing() -> None:
    assert missing_features(cpuid((0, 0, 0), (1, ECX_1, EDX_1), (0x80000001, 0, LONG_MODE))) == []


def test_no_leaves_at_all() -> None:
    assert len(missing_features(cpuid())) == 6


def test_a_missing_feature_is_named() -> None:
    assert missing_features(cpuid((1, ECX_1 & ~1, EDX_1), (0x80000001, 0, 0))) == ["sse3", "long mode"]


def test_only_the_leaf_itself_counts_not_its_subleaves() -> None:
    assert "sse3" in missing_features(cpuid((1, ECX_1, EDX_1), index=1))


def test_a_count_beyond_the_data_is_not_believed() -> None:
    assert missing_features(cpuid((1, ECX_1, EDX_1), count=1 << 31)) == ["long mode"]


def test_no_device(tmp_path: Path) -> None:
    assert obstacle(tmp_path / "kvm") == f"{tmp_path}/kvm cannot be opened: No such file or directory"


def test_a_file_is_no_kvm(tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()
    assert "does not answer like KVM: Inappropriate ioctl" in (obstacle(tmp_path / "kvm") or "")


def test_a_processor_without_virtualization(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse2\n\nprocessor\t: 1\nflags\t\t: svm\n")
    assert cpu_flags(cpuinfo) == {"fpu", "sse2"}
    if not Path("/dev/kvm").exists():
        pytest.skip("needs /dev/kvm")
    said = obstacle(cpuinfo=cpuinfo) or ""
    assert "neither vmx nor svm" in said
    assert said.endswith("it runs only guests made for it (PVM)")
    assert obstacle(cpuinfo=cpuinfo, pvm_guest=True) is None, "a guest made for it may be tried"


def test_a_guest_for_pvm_needs_a_kvm_nonetheless(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, said in (("file", "does not answer like KVM"), ("none", "cannot be opened")):
        assert said in (obstacle(tmp_path / name, pvm_guest=True) or "")


def test_flags_of_a_file_without_any(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_bytes(b"\xff\xfe\n")
    assert cpu_flags(tmp_path / "cpuinfo") == set()
