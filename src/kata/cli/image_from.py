"""The root file system that `kata image build --from` names: a directory, or an unpacked image."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kata.errors import NotFound
from kata.runtime.images.archive import open_archive
from kata.runtime.images.unpack import unpack


@contextmanager
def root_file_system(path: Path | None) -> Iterator[Path | None]:
    """The directory of a root file system, for as long as it is needed.

    Args:
        path: of a directory, of an OCI layout or archive, or of what `docker save` writes; None for none.

    Raises:
        NotFound: there is nothing.
        InvalidArgument: it is no image for linux/amd64.
    """
    if path is None:
        yield None
        return
    if not path.exists():
        raise NotFound(f"{path} does not exist")
    if path.is_dir() and not (path / "oci-layout").exists():
        yield path.resolve()
        return
    # On a disk, and removed whatever happens; a killed build leaves it to the system's cleaner of /var/tmp.
    with tempfile.TemporaryDirectory(prefix="kata-image-", dir="/var/tmp") as directory, open_archive(path) as image:
        unpack(image, Path(directory, "root"))
        yield Path(directory, "root")
