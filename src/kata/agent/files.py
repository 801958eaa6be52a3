"""CopyFile: files, directories and symbolic links from the host, confined to the shared directory.

A file comes in chunks, one call each, and has its name only when it is complete. No symbolic link is followed on the
way to it, because containers can create some in the same tree.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from kata.errors import FailedPrecondition, InvalidArgument
from kata.linux.openat2 import open_directory, relative_parts

if TYPE_CHECKING:
    from kata.protocols import agent_pb2

_PREFIX = ".kata-copy-"
_MAX_NAME = 255 - len(_PREFIX)


def copy(request: agent_pb2.CopyFileRequest, root: str) -> None:
    """Carry out one CopyFile request below the directory `root`.

    The type is in `file_mode` (inode(7)); none means a regular file. A symbolic link's target is `data`.

    Raises:
        InvalidArgument: a path outside of `root`, a chunk outside of its file, an unknown type of file.
        FailedPrecondition: the file system refuses.
    """
    parts = _parts(request.path, root)
    try:
        os.makedirs(root, exist_ok=True)
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            parent = open_directory(root_fd, "/".join(parts[:-1]), create_mode=stat.S_IMODE(request.dir_mode) or 0o755)
        finally:
            os.close(root_fd)
        try:
            _place(request, parent, parts[-1])
        finally:
            os.close(parent)
    except OSError as error:
        raise FailedPrecondition(f"cannot copy {request.path}: {error.strerror}") from error


def _parts(path: str, root: str) -> list[str]:
    try:
        parts, below = relative_parts(path), relative_parts(root)
    except ValueError as error:
        raise InvalidArgument(f"cannot copy: {error}") from error
    if not path.startswith("/") or parts[: len(below)] != below or len(parts) == len(below):
        raise InvalidArgument(f"cannot copy to {path!r}: it is not below {root}")
    if len(parts[-1].encode()) > _MAX_NAME:
        length = len(parts[-1].encode())
        raise InvalidArgument(f"name of {path[:100]!r}… is {length} bytes long; the maximum is {_MAX_NAME}")
    return parts[len(below) :]


def _place(request: agent_pb2.CopyFileRequest, parent: int, name: str) -> None:
    kind = stat.S_IFMT(request.file_mode)
    if kind == stat.S_IFDIR:
        _place_directory(request, parent, name)
    elif kind == stat.S_IFLNK:
        temporary = _PREFIX + name
        _remove(temporary, parent)
        os.symlink(request.data, temporary.encode(), dir_fd=parent)
        os.chown(temporary, request.uid, request.gid, dir_fd=parent, follow_symlinks=False)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    elif kind in (0, stat.S_IFREG):
        _place_chunk(request, parent, name)
    else:
        raise InvalidArgument(f"cannot copy {request.path}: it is neither a file nor a directory nor a symbolic link")


def _place_directory(request: agent_pb2.CopyFileRequest, parent: int, name: str) -> None:
    fd = open_directory(parent, name, create_mode=0o700)
    try:
        os.chown(f"/proc/self/fd/{fd}", request.uid, request.gid)
        os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(request.file_mode))
    finally:
        os.close(fd)


def _place_chunk(request: agent_pb2.CopyFileRequest, parent: int, name: str) -> None:
    if request.offset < 0 or request.offset + len(request.data) > request.file_size:
        raise InvalidArgument(f"chunk of {request.path} lies outside of its {request.file_size} bytes")
    temporary = _PREFIX + name
    if not request.offset:
        _remove(temporary, parent)
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=parent)
    try:
        _write_all(fd, request.data, request.offset)
        if request.offset + len(request.data) < request.file_size:
            return
        os.fchown(fd, request.uid, request.gid)
        os.fchmod(fd, stat.S_IMODE(request.file_mode))
    except OSError:
        _remove(temporary, parent)
        raise
    finally:
        os.close(fd)
    os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _remove(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
