"""Single steps, for people who build images by Kata's words: an image, or an initrd, of a root that is a directory.

The same directory gives the same bytes with the same version of the host's tools: the identifier of the file system is
made of its content, and all files have the date of $SOURCE_DATE_EPOCH, or 1970. Reference: https://reproducible-builds.org/specs/source-date-epoch/
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from kata.errors import FailedPrecondition, InvalidArgument, NotFound
from kata.osbuilder import agent_files, build, commands, contents, root_image, store, verity
from kata.osbuilder.recipe import Form


def make(root: Path, target: Path, form: Form, environ: Mapping[str, str] = os.environ) -> None:
    """Write an image or an initrd.

    Args:
        root: a directory with the agent in it, as `build.build_root` makes it.
        target: the file, which is replaced; it appears complete or not at all.
        form: which.
        environ: for SOURCE_DATE_EPOCH.

    Raises:
        NotFound: there is no such directory, or a tool is not installed.
        FailedPrecondition: the agent is not in it, or the file cannot be written.
        InvalidArgument: SOURCE_DATE_EPOCH is no number.
        ResourceExhausted, DeadlineExceeded, Internal: as `build.build`.
    """
    if not root.is_dir():
        raise NotFound(f"{root} is not a directory")
    if not os.access(root / agent_files.LAUNCHER, os.X_OK):
        raise FailedPrecondition(
            f"{root} has no /{agent_files.LAUNCHER}", hint="make a root with it: kata-osbuilder rootfs"
        )
    date = environ.get("SOURCE_DATE_EPOCH") or "0"
    if not date.isascii() or not date.isdigit() or len(date) > 10:
        raise InvalidArgument(f"SOURCE_DATE_EPOCH is '{date[:32]}', not a number of seconds since 1970")
    commands.require((*root_image.tools(form), *root_image.tools_of_host(form)))
    target = target.absolute()
    if not target.parent.is_dir():
        raise NotFound(f"{target.parent} is not a directory")
    beside = f"{target.name}{verity.SUFFIX}"
    workshop = target.with_name(f"{store.BUILDING}{target.name}")
    with build.told(target.parent):
        shutil.rmtree(workshop, ignore_errors=True)
        workshop.mkdir()
        try:
            identity = hashlib.sha256(contents.dump(contents.collect(root)).encode()).hexdigest()
            root_image.write_root(root, workshop / target.name, form, int(date), str(UUID(identity[:32])), None)
            # In this order a guest is never given an image unchecked that was to be checked.
            if form.verity:
                (workshop / beside).replace(target.parent / beside)
            (workshop / target.name).replace(target)
            if not form.verity:
                (target.parent / beside).unlink(missing_ok=True)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
