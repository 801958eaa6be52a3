"""The agent's files: the parts of this package that run in the guest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import kata
from kata.errors import NotFound

PARTS = (
    "__init__.py",
    "version.py",
    "errors.py",
    "architecture.py",
    "log_fields.py",
    "agent",
    "ttrpc",
    "protocols",
    "oci",
    "policy",
    "linux",
    "archive",
    "loop",
    "metrics",
)

# Below the guest's root.
PACKAGE = Path("usr/lib/kata/kata")
LAUNCHER = Path("usr/bin/kata-agent")

# Isolated, without site: the image's paths are known, and each file that is not looked for saves time at start.
LAUNCHER_TEXT = """\
#!/usr/bin/python3 -IS
import sys

sys.path += ["/usr/lib/kata", "/usr/lib/python3/dist-packages"]

from kata.agent.main import main

main()
"""


def source_directory() -> Path:
    """Where this package is installed."""
    return Path(kata.__file__).parent


def collect(source: Path) -> dict[str, bytes]:
    """The agent's modules: path below the package to content, sorted.

    Raises:
        NotFound: a part is missing.
    """
    found: dict[str, bytes] = {}
    for part in PARTS:
        path = source / part
        if not path.exists():
            raise NotFound(f"the agent's part {path} is missing", hint="reinstall the package")
        modules = [path] if path.is_file() else path.rglob("*.py")
        found.update((str(module.relative_to(source)), module.read_bytes()) for module in modules)
    return dict(sorted(found.items()))


def digest(files: Mapping[str, bytes]) -> str:
    """One SHA-256 over names and contents, and the launcher."""
    total = hashlib.sha256(LAUNCHER_TEXT.encode())
    for name, content in files.items():
        total.update(f"\0{name}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def install(files: Mapping[str, bytes], root: Path) -> None:
    """Write the agent below a guest root. Raises OSError."""
    for name, content in files.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o644)
    launcher = root / LAUNCHER
    launcher.write_text(LAUNCHER_TEXT)
    launcher.chmod(0o755)
