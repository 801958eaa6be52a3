"""`make install` where it must not, or cannot, write: it says so before anything is done."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def install(prefix: Path, tmp_path: Path) -> str:
    """Run `make install`, which has to fail; its last words."""
    # Of Debian's packages it needs one that each Debian has: nothing is downloaded.
    arguments = (f"PREFIX={prefix}", f"BIN={tmp_path}/bin", f"SHARE={tmp_path}/share", "APT_RUN=dpkg", "ANYWAY=1")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--no-print-directory", "install", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert not (tmp_path / "bin").exists()
    assert not (tmp_path / "share").exists()
    return next(line for line in done.stderr.splitlines() if line.startswith("make: /"))


def test_over_another_kata(tmp_path: Path) -> None:
    prefix = tmp_path / "opt/kata"
    shim = prefix / "bin/containerd-shim-kata-v2"
    shim.parent.mkdir(parents=True)
    shim.write_bytes(b"\x7fELF")
    assert install(prefix, tmp_path) == (
        f"make: {prefix} has another Kata; remove it first, or make install PREFIX=/opt/pykata"
    )
    assert [path for path in prefix.rglob("*") if path.is_file()] == [shim]


@pytest.mark.parametrize("place", ["/proc/kata", "/dev/null/kata"])
def test_where_nothing_can_be_written(tmp_path: Path, place: str) -> None:
    """/proc takes no directory, even from root; a read-only /opt refuses likewise."""
    assert install(Path(place), tmp_path) == f"make: {place} cannot be written; name another PREFIX"
