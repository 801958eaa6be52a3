"""The root file system that `kata image build --from` names: a directory, or an unpacked image."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kata.architecture import HOST, Architecture
from kata.errors import NotFound
from kata.linux import lock as flock
from kata.runtime.images.archive import open_archive
from kata.runtime.images.unpack import unpack

#: On a disk: it may be large.
_WHERE = Path("/var/tmp")
_PREFIX = "kata-image-"
#: In a directory that is used: a killed build holds it no longer.
_LOCK = "lock"
#: Seconds in which whoever has made a directory locks it.
_YOUNG_S = 60.0


@contextmanager
def root_file_system(path: Path | None, architecture: Architecture = HOST) -> Iterator[Path | None]:
    """The directory of a root file system, for as long as it is needed.

    Args:
        path: of a directory, of an OCI layout or archive, or of what `docker save` writes; None for none.
        architecture: of the guest.

    Raises:
        NotFound: there is nothing.
        InvalidArgument: it is no image for that architecture.
    """
    if path is None:
        yield None
        return
    if not path.exists():
        raise NotFound(f"{path} does not exist")
    if path.is_dir() and not (path / "oci-layout").exists():
        yield path.resolve()
        return
    remove_leftovers(_WHERE)
    platform = architecture.platform
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=_WHERE) as directory,
        open_archive(path, platform=platform) as image,
    ):
        held = flock.acquire(Path(directory, _LOCK))
        assert held is not None
        try:
            unpack(image, Path(directory, "root"))
            yield Path(directory, "root")
        finally:
            os.close(held)


def remove_leftovers(where: Path) -> None:
    """Remove what killed builds of this user have unpacked."""
    for directory in where.glob(f"{_PREFIX}*"):
        # Another build may be doing the same, or be at its end.
        with contextlib.suppress(OSError):
            status = directory.lstat()
            if status.st_uid != os.geteuid() or time.time() - status.st_mtime < _YOUNG_S:
                continue
            held = flock.acquire(directory / _LOCK)
            if held is not None:
                try:
                    shutil.rmtree(directory)
                finally:
                    os.close(held)
