"""Regenerate the `*_pb2.py` and `*_pb2.pyi` modules from the `.proto` sources beside them in `kata.protocols`.

    python -m tools.generate_protocols           writes them
    python -m tools.generate_protocols --check   exit status 1 if one differs from the output for its source

The modules are checked in, so that neither users nor the guest need a compiler. Use Debian's protoc 3.21: its output
runs on python-protobuf 4.21 and later, while a newer protoc's output needs a newer one. Messages keep upstream's names;
files are called `kata/protocols/…` in the descriptor pool, where a file of the same name from another package would be
an error.

Not for: messages of ttrpc itself, which `kata.ttrpc` encodes by hand.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE_ROOT = Path(__file__).resolve().parents[1] / "src"
PACKAGE = SOURCE_ROOT / "kata/protocols"
PROTOC_VERSION = "libprotoc 3.21.12"
_PROTOC_TIMEOUT_S = 60.0

# The stubs are correct, but protoc does not write them for mypy's strict mode.
_STUB_HEADER = b"# mypy: ignore-errors\n"

# protoc needs the definitions of what a source imports, and their files are in a development package that is often
# missing. These definitions never change.
_WELL_KNOWN = {
    "any": "message Any { string type_url = 1; bytes value = 2; }",
    "empty": "message Empty {}",
    "timestamp": "message Timestamp { int64 seconds = 1; int32 nanos = 2; }",
}


class GenerateError(Exception):
    """protoc is missing, has another version, or rejects a source."""


def sources() -> list[Path]:
    """Return the `.proto` files, relative to the source root, sorted."""
    return sorted(path.relative_to(SOURCE_ROOT) for path in PACKAGE.rglob("*.proto"))


def generate() -> dict[Path, bytes]:
    """Return the content of each generated file, by its path relative to the source root.

    Raises:
        GenerateError: protoc is missing, has another version, or rejects a source.
    """
    protoc = shutil.which("protoc")
    if protoc is None:
        raise GenerateError("protoc is not installed (Debian: protobuf-compiler)")
    version = _run([protoc, "--version"]).strip()
    if version != PROTOC_VERSION:
        raise GenerateError(f"protoc is {version!r}; the modules are generated with {PROTOC_VERSION!r}")
    with tempfile.TemporaryDirectory(prefix="kata-protocols-") as scratch:
        include, out = Path(scratch, "include"), Path(scratch, "out")
        well_known = include / "google" / "protobuf"
        well_known.mkdir(parents=True)
        out.mkdir()
        for name, message in _WELL_KNOWN.items():
            (well_known / f"{name}.proto").write_text(f'syntax = "proto3"; package google.protobuf; {message}\n')
        command = [protoc, f"--proto_path={SOURCE_ROOT}", f"--proto_path={include}"]
        command += [f"--python_out={out}", f"--pyi_out={out}"]
        _run(command + [str(source) for source in sources()])
        generated = {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*_pb2.py*"))}
    return {path: _STUB_HEADER + text if path.suffix == ".pyi" else text for path, text in generated.items()}


def stale() -> list[Path]:
    """Return generated files that are missing, out of date, or without a source.

    Raises:
        GenerateError: as `generate`.
    """
    wanted = generate()
    present = {path.relative_to(SOURCE_ROOT): path.read_bytes() for path in PACKAGE.rglob("*_pb2.py*")}
    return sorted(path for path in wanted.keys() | present.keys() if wanted.get(path) != present.get(path))


def write() -> list[Path]:
    """Bring the generated files up to date; return those that were changed.

    Raises:
        GenerateError: as `generate`.
    """
    wanted = generate()
    changed = stale()
    for path in changed:
        target = SOURCE_ROOT / path
        if path in wanted:
            target.write_bytes(wanted[path])
        else:
            target.unlink()
    return changed


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROTOC_TIMEOUT_S, cwd=SOURCE_ROOT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GenerateError(f"cannot run {command[0]}: {error}") from error
    if done.returncode != 0:
        raise GenerateError(f"protoc failed: {done.stderr.strip()}")
    return done.stdout


def main(arguments: list[str]) -> int:
    """Write or check; return the exit status."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python -m tools.generate_protocols [--check]\n")
        return 2
    check = bool(arguments)
    try:
        paths = stale() if check else write()
    except GenerateError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for path in paths:
        sys.stdout.write(f"{'stale' if check else 'wrote'} {path}\n")
    return 1 if check and paths else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
