"""The kernel's real sources: fetched from Debian's mirror, patched, configured with the project's fragments.

Takes a minute on an idle host, 1.6 GB in /var/cache/kata-test, and 155 MB of download the first time.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kata.errors import FailedPrecondition, NotFound, Unavailable
from kata.kernel_build import build, options
from kata.kernel_build.build import BuildOptions
from kata.kernel_build.requirements import requirements

pytestmark = [pytest.mark.long, pytest.mark.root, pytest.mark.timeout(1800)]

CACHE = Path("/var/cache/kata-test/kernel")


@pytest.fixture
def prepared(tmp_path: Path) -> build.Prepared:
    try:
        return build.setup(BuildOptions(kernels=tmp_path, cache=CACHE))
    except (NotFound, Unavailable) as error:
        pytest.skip(f"{error}; {error.hint}")


def test_the_patches_apply_and_the_kernel_takes_the_options(prepared: build.Prepared, tmp_path: Path) -> None:
    """That nothing is refused is what `setup` has checked."""
    found = options.parse(prepared.config.read_text(), "x")
    assert found["LOCALVERSION"] == f'"-kata{prepared.inputs.config_version}"'
    assert all(one.missing(found) == [] for one in requirements())
    assert "=m\n" not in prepared.config.read_text()
    assert "v9fs_written_i_size" in (prepared.tree / "fs/9p/vfs_inode_dotl.c").read_text()

    # An option that needs another one which is off.
    own = tmp_path / "own.conf"
    own.write_text("CONFIG_KPROBE_EVENTS=y\n")
    with pytest.raises(FailedPrecondition, match="CONFIG_KPROBE_EVENTS is n instead of y"):
        build.setup(BuildOptions(kernels=tmp_path, cache=CACHE, own_fragments=(own,)))
