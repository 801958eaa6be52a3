"""Unpack an image: its layers, lowest first, onto an empty directory.

Layers are tar streams with whiteouts (OCI image specification, layer.md): `.wh.NAME` removes NAME of lower layers,
`.wh..wh..opq` removes everything in its directory that comes from lower layers. An archive is untrusted: nothing is
created, removed or linked outside the target, entries and bytes are bounded, and whatever fails, the target is gone
afterwards.

The target may have set-user-id programs and device nodes of others: keep it beneath a directory that only root can
enter. Without root, ownership is ignored and device nodes are refused.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from kata.archive.tar import Entry, EntryType, TarReader, shown
from kata.errors import AlreadyExists, Internal, InvalidArgument, KataError, PermissionDenied, ResourceExhausted
from kata.runtime.images.layer import Budget, open_layer
from kata.runtime.images.model import Image, UnpackLimits
from kata.runtime.images.tree import Place, Tree

_WHITEOUT = ".wh."
_META = ".wh..wh."
_OPAQUE = ".wh..wh..opq"

_OPAQUE_XATTR = "trusted.overlay.opaque"

# Extended attributes that an archive may set. Not trusted.* and user.overlay.*: they control overlayfs.
_XATTRS = ("user.", "security.capability", "system.posix_acl_")
_NO_XATTRS = "user.overlay."


class NotSeparate(Exception):
    """A layer can be understood only together with those below it: it adds to a directory that is not its own."""


def unpack(
    image: Image,
    target: Path,
    limits: UnpackLimits = UnpackLimits(),  # noqa: B008 - frozen
    *,
    only: int | None = None,
) -> None:
    """Unpack an image, or one layer of it.

    A layer above the lowest one becomes what overlayfs expects there: for what it removes there are whiteouts, device
    nodes 0/0, and a directory that hides the one below is marked (the kernel's
    Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").

    Args:
        image: opened.
        target: an empty directory, or one to be made; removed again after a failure.
        limits: on entries and bytes.
        only: the number of a layer, 0 for the lowest; None for all, one over the other.

    Raises:
        AlreadyExists: the target is not empty (and stays as it is).
        InvalidArgument: a layer is damaged, does not match its digest, or asks for something impossible.
        ResourceExhausted: the disk is full or the image exceeds `limits`.
        PermissionDenied: not root, and the target cannot be written or a layer has a device node.
        Unimplemented: a layer has sparse files, or is compressed with something other than gzip or zstd.
        NotSeparate: the layer can be unpacked only over those below it.
        Internal: the disk fails.
    """  # noqa: DOC501 - `_failure` makes one of these
    try:
        target.mkdir(mode=0o755, exist_ok=True)
        if os.listdir(target):
            raise AlreadyExists(f"directory {target} is not empty")
    except OSError as error:
        raise _failure(error, f"cannot unpack {image.origin} into {target}") from error
    try:
        with Tree(os.fspath(target)) as tree:
            _Unpacker(image, tree, limits, only).run()
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


class _Unpacker:
    def __init__(self, image: Image, tree: Tree, limits: UnpackLimits, only: int | None) -> None:
        self._image = image
        self._tree = tree
        self._limits = limits
        self._layers = range(len(image.layers)) if only is None else (only,)
        self._on_top = bool(only)
        self._entries = 0
        self._privileged = os.geteuid() == 0
        self._made: set[tuple[int, str]] = set()
        self._times: dict[str, int] = {}

    def run(self) -> None:
        budget = Budget(self._limits.size)
        os.fchmod(self._tree.root, 0o755)  # unless a layer says otherwise
        for index in self._layers:
            layer = self._image.layers[index]
            label = f"image {self._image.origin}: layer {index + 1} of {len(self._image.layers)}"
            self._made.clear()
            with open_layer(layer, label, budget) as stream:
                reader = TarReader(stream, label)
                for entry in reader:
                    self._count()
                    try:
                        self._apply(entry, reader)
                    except OSError as error:
                        raise _failure(error, f"{label}: cannot create {entry.type} {shown(entry.name)}") from error
        # Last, because creating an entry in a directory changes its time.
        for name, mtime in self._times.items():
            self._set_directory_time(name, mtime)

    def _count(self) -> None:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise ResourceExhausted(
                f"image {self._image.origin} has more than {self._limits.entries} entries",
                hint="raise the limit if the image is trusted",
            )

    def _apply(self, entry: Entry, reader: TarReader) -> None:
        base = entry.name.rstrip("/").rpartition("/")[2]
        if base.startswith(_WHITEOUT):
            self._whiteout(entry.name.rstrip("/"), base)
            return
        # The source of a hard link first: finding it makes the tree forget other places.
        source = self._link_source(entry) if entry.type is EntryType.HARD_LINK else None
        try:
            place = self._place(entry.name)
            if place is None:
                self._root(entry)
                return
            place = self._clear(place, entry)
            self._create(place, entry, reader, source)
            self._made.add(place.key)
        finally:
            if source is not None:
                os.close(source.fd)

    def _place(self, name: str) -> Place | None:
        """The place of an entry, whose parents are made if they are missing, and if no layer below may have them.

        Raises:
            NotSeparate: a layer below may have them.
            OSError: a parent is not a directory, or a looping link.
        """
        try:
            return self._tree.place(name, create=not self._on_top)
        except FileNotFoundError:
            raise NotSeparate(name) from None

    def _root(self, entry: Entry) -> None:
        if entry.type is not EntryType.DIRECTORY:
            raise InvalidArgument(f"image {self._image.origin}: a {entry.type} in place of the root directory")
        self._set_metadata(self._tree.root, entry)
        self._times[""] = entry.mtime

    def _clear(self, place: Place, entry: Entry) -> Place:
        """Make room at `place`: only a directory may stay, for a directory."""
        mode = place.mode()
        if mode is None or (stat.S_ISDIR(mode) and entry.type is EntryType.DIRECTORY):
            return place
        replaced = self._on_top and entry.type is EntryType.DIRECTORY
        self._tree.remove(place)
        again = self._tree.place(entry.name)
        assert again is not None
        if replaced:
            # What was here, even if it was a whiteout, has hidden a directory below; so does this one.
            os.mkdir(again.name, 0o700, dir_fd=again.fd)
            self._make_opaque(again)
        return again

    def _create(self, place: Place, entry: Entry, reader: TarReader, source: Place | None) -> None:
        fd, name = place.fd, place.name
        match entry.type:
            case EntryType.FILE:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with open(os.open(name, flags, 0o600, dir_fd=fd), "wb") as file:
                    for chunk in reader.chunks():
                        file.write(chunk)
                    file.flush()
                    self._set_metadata(file.fileno(), entry)
                    os.utime(file.fileno(), ns=(entry.mtime, entry.mtime))
            case EntryType.DIRECTORY:
                if place.mode() is None:
                    os.mkdir(name, 0o700, dir_fd=fd)
                child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                try:
                    self._set_metadata(child, entry)
                finally:
                    os.close(child)
                self._times.pop(entry.name, None)  # to the end: the uppermost layer's time is set last
                self._times[entry.name] = entry.mtime
            case EntryType.HARD_LINK:
                assert source is not None
                os.link(source.name, name, src_dir_fd=source.fd, dst_dir_fd=fd, follow_symlinks=False)
            case EntryType.SYMLINK:
                os.symlink(entry.link, name, dir_fd=fd)
                self._set_special_metadata(place, entry)
            case EntryType.FIFO:
                os.mkfifo(name, 0o600, dir_fd=fd)
                self._set_special_metadata(place, entry)
            case EntryType.CHARACTER | EntryType.BLOCK:
                kind = stat.S_IFCHR if entry.type is EntryType.CHARACTER else stat.S_IFBLK
                os.mknod(name, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=fd)
                self._set_special_metadata(place, entry)

    def _link_source(self, entry: Entry) -> Place:
        place = self._tree.place(entry.link, create=False) if not self._on_top else self._place(entry.link)
        if place is not None and self._on_top and place.mode() is None:
            raise NotSeparate(entry.link)
        if place is None:
            raise InvalidArgument(f"image {self._image.origin}: hard link {shown(entry.name)} to the root directory")
        return Place(os.dup(place.fd), place.inode, place.name)

    def _whiteout(self, name: str, base: str) -> None:
        directory = name[: -len(base)]
        if base == _OPAQUE:
            removed, children_only = directory.rstrip("/"), True
        elif base.startswith(_META):
            return  # aufs' own metadata
        else:
            removed, children_only = directory + base.removeprefix(_WHITEOUT), False
            if base.removeprefix(_WHITEOUT) in ("", ".", ".."):
                raise InvalidArgument(f"image {self._image.origin}: whiteout {shown(name)} of no file")
        if self._on_top:
            self._hide(removed, children_only=children_only)
            return
        try:
            if children_only:
                self._tree.empty(removed, self._made)
            elif (place := self._tree.place(removed, create=False)) is not None:
                self._tree.remove(place, self._made)
        except (FileNotFoundError, NotADirectoryError):
            pass  # there is nothing to remove

    def _hide(self, name: str, *, children_only: bool) -> None:
        """Hide what layers below have at a path.

        Raises:
            NotSeparate: a directory that a layer below may have is emptied.
            OSError: as `_place`, mknod(2) and setxattr(2).
        """
        place = self._place(name)
        if place is None:
            os.setxattr(self._tree.root, _OPAQUE_XATTR, b"y")
            return
        mode = place.mode()
        if mode is not None and stat.S_ISDIR(mode):
            self._make_opaque(place)
        elif children_only:
            raise NotSeparate(name)
        elif mode is None:
            os.mknod(place.name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=place.fd)
        # Anything else is this layer's own, and hides what is below.

    @staticmethod
    def _make_opaque(place: Place) -> None:
        fd = os.open(place.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd)
        try:
            os.setxattr(fd, _OPAQUE_XATTR, b"y")
        finally:
            os.close(fd)

    def _set_metadata(self, fd: int, entry: Entry) -> None:
        """Owner, attributes, mode: in this order, because a new owner takes capabilities and set-id bits away.

        Raises:
            OSError: one cannot be set. An attribute that the file system lacks, or that needs root, is left out.
        """
        if self._privileged:
            os.fchown(fd, entry.uid, entry.gid)
        for name, value in entry.xattrs.items():
            if name.startswith(_XATTRS) and not name.startswith(_NO_XATTRS):
                try:
                    os.setxattr(fd, name, value)
                except OSError as error:
                    # Not every file system has them; and without root some are forbidden.
                    if error.errno != errno.ENOTSUP and self._privileged:
                        raise
        os.fchmod(fd, entry.mode)

    def _set_special_metadata(self, place: Place, entry: Entry) -> None:
        if self._privileged:
            os.chown(place.name, entry.uid, entry.gid, dir_fd=place.fd, follow_symlinks=False)
        if entry.type is not EntryType.SYMLINK:
            os.chmod(place.name, entry.mode, dir_fd=place.fd)
        os.utime(place.name, ns=(entry.mtime, entry.mtime), dir_fd=place.fd, follow_symlinks=False)

    def _set_directory_time(self, name: str, mtime: int) -> None:
        try:
            place = self._tree.place(name, create=False)
            if place is None:
                os.utime(self._tree.root, ns=(mtime, mtime))
            elif stat.S_ISDIR(place.mode() or 0):
                os.utime(place.name, ns=(mtime, mtime), dir_fd=place.fd, follow_symlinks=False)
        except OSError as error:
            # A later entry removed it, or replaced its parent by a file or a looping link.
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise


def _failure(error: OSError, what: str) -> KataError:
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(f"{what}: {reason}", hint="free some space or unpack elsewhere")
    if isinstance(error, PermissionError) and os.geteuid() != 0:
        return PermissionDenied(f"{what}: {reason}", hint="run as root")
    if error.errno in (errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSYS):
        return Internal(f"{what}: {reason}")
    # Everything else is caused by the archive: names too long, looping links, files as directories...
    return InvalidArgument(f"{what}: {reason}")
