"""The generated modules are those of their sources."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import generate_protocols

_PROTOC = shutil.which("protoc")


def _protoc_is_ours() -> bool:
    if _PROTOC is None:
        return False
    said = subprocess.run([_PROTOC, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    return said.strip() == generate_protocols.PROTOC_VERSION


needs_protoc = pytest.mark.skipif(not _protoc_is_ours(), reason=f"no {generate_protocols.PROTOC_VERSION}")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package in a place of its own, for tests that spoil it."""
    package = tmp_path / "kata" / "protocols"
    shutil.copytree(generate_protocols.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(generate_protocols, "SOURCE_ROOT", tmp_path)
    monkeypatch.setattr(generate_protocols, "PACKAGE", package)
    return package


@needs_protoc
def test_modules_are_fresh() -> None:
    assert generate_protocols.stale() == []


@needs_protoc
def test_check_tells_what_is_stale_and_changes_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = copy / "health.proto"
    source.write_text(source.read_text().replace("agent_version = 2", "agent_version = 3"))
    (copy / "csi_pb2.pyi").unlink()
    (copy / "gone_pb2.py").write_text("")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert generate_protocols.main(["--check"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "stale kata/protocols/csi_pb2.pyi",
        "stale kata/protocols/gone_pb2.py",
        "stale kata/protocols/health_pb2.py",
    ]
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert generate_protocols.main([]) == 0
    assert generate_protocols.main(["--check"]) == 0
    assert not (copy / "gone_pb2.py").exists()


@needs_protoc
def test_a_bad_source_is_an_error_that_names_it(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "bad.proto").write_text('syntax = "proto3"; message')
    assert generate_protocols.main(["--check"]) == 1
    assert "bad.proto" in capsys.readouterr().err


def test_missing_protoc_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert generate_protocols.main([]) == 1
    assert capsys.readouterr().err == "error: protoc is not installed (Debian: protobuf-compiler)\n"


def test_another_protoc_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "protoc"
    other.write_text("#!/bin/sh\necho libprotoc 99.0\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert generate_protocols.main(["--check"]) == 1
    assert "99.0" in capsys.readouterr().err


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate_protocols.main(["--chekc"]) == 2
    assert "usage" in capsys.readouterr().err


def test_no_module_of_ours_claims_a_name_that_others_register() -> None:
    """googleapis-common-protos owns google.rpc.Status; a user's program may load both, in either order."""
    program = """
from google.protobuf import descriptor_pb2, descriptor_pool
import kata.protocols.status_pb2
file = descriptor_pb2.FileDescriptorProto(name="google/rpc/status.proto", package="google.rpc", syntax="proto3")
file.message_type.add(name="Status")
descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
