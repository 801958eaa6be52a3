"""What the package as a whole promises."""

from __future__ import annotations

import subprocess
import sys

from kata import ttrpc


def test_all_names_are_there() -> None:
    assert all(hasattr(ttrpc, name) for name in ttrpc.__all__)


def test_the_package_itself_costs_nothing() -> None:
    code = "import sys; before = set(sys.modules); import kata.ttrpc.wire; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert loaded.stdout.split() == ["__future__", "kata", "kata.ttrpc", "kata.ttrpc.wire"]


def test_import_needs_the_standard_library_only() -> None:
    code = "import sys; from kata.ttrpc import *; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    bare = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, check=True)
    known = sys.stdlib_module_names | set(bare.stdout.decode().split()) | {"kata"}
    assert set(loaded.stdout.split()) - known - {"__main__"} == set()
    inside = "import sys; from kata.ttrpc import *; print(*[name for name in sys.modules if name.startswith('kata.')])"
    loaded = subprocess.run([sys.executable, "-c", inside], capture_output=True, text=True, check=True, timeout=30)
    assert {name.split(".")[1] for name in loaded.stdout.split()} == {"ttrpc"}
