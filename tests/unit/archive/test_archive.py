"""Files packed and extracted again, and archives that want to write elsewhere."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kata.archive.extract import extract
from kata.archive.pack import Totals, pack
from kata.errors import FailedPrecondition, InvalidArgument, KataError, NotFound

ME = (os.getuid(), os.getgid())


def packed(root: Path, path: str, name: str, *, follow: bool = False) -> bytes:
    out = io.BytesIO()
    fd = os.open(root, os.O_PATH)
    try:
        pack(out, fd, path, name, follow=follow)
    finally:
        os.close(fd)
    return out.getvalue()


def extracted(content: bytes, into: Path, owner: tuple[int, int] | None = None) -> Totals:
    fd = os.open(into, os.O_PATH | os.O_DIRECTORY)
    try:
        return extract(io.BytesIO(content), fd, "test", owner=owner)
    finally:
        os.close(fd)


def tree(root: Path) -> dict[str, tuple[int, int, str]]:
    """Mode, time and content of all that is in a directory."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else ""
        found[str(path.relative_to(root))] = status.st_mode, status.st_mtime_ns, content
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A root with a directory of all kinds of files."""
    root = tmp_path / "root"
    data = root / "data"
    (data / "deep/deeper").mkdir(parents=True)
    (data / "file").write_text("hello")
    (data / "file").chmod(0o640)
    os.utime(data / "file", ns=(1, 1_600_000_000_123_456_789))
    os.link(data / "file", data / "same")
    (data / "empty").touch()
    (data / "link").symlink_to("/etc/passwd")
    (data / "ünïcode \n").write_text("x")
    (data / "deep" / ("n" * 200)).write_text("long")
    (data / "deep/deeper").chmod(0o500)
    os.mkfifo(data / "fifo", 0o600)
    return root


def test_everything_arrives(source: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    totals = extracted(packed(source, "/data", "copy"), into)
    assert tree(into / "copy") == tree(source / "data")
    assert (into / "copy/file").stat().st_ino == (into / "copy/same").stat().st_ino
    assert (totals.entries, totals.skipped) == (10, None)


def test_the_content_of_a_directory(source: Path, tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir(mode=0o711)
    extracted(packed(source, "data/deep/.", ""), into)
    assert sorted(os.listdir(into)) == ["deeper", "n" * 200]
    assert into.stat().st_mode & 0o777 == 0o711


@pytest.mark.parametrize("program", [("tar", "-x", "-C"), None], ids=["GNU tar", "tarfile"])
def test_others_can_read_it(source: Path, tmp_path: Path, program: tuple[str, ...] | None) -> None:
    with (source / "data/sparse").open("wb") as file:
        file.seek(10 << 20)
        file.write(b"end")
        file.truncate(20 << 20)
    content = packed(source, "data", "copy")
    assert len(content) < 1 << 20
    into = tmp_path / "into"
    into.mkdir()
    if program:
        subprocess.run([*program, str(into)], input=content, check=True)
    else:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for one in archive:
                archive._extract_member(one, f"{into}/{one.name}")
    assert (into / "copy/sparse").read_bytes() == (source / "data/sparse").read_bytes()
    (into / "copy/sparse").unlink()
    (source / "data/sparse").unlink()
    assert [*tree(into / "copy")] == [*tree(source / "data")]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_what_others_have_written(tmp_path: Path, form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        member = tarfile.TarInfo("d/" + "n" * 99)
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    extracted(out.getvalue(), tmp_path)
    assert (tmp_path / "d" / ("n" * 99)).read_text() == "abc"


@pytest.mark.parametrize("layout", ["hole first", "hole last", "only a hole", "many"])
def test_holes_stay_holes(tmp_path: Path, layout: str) -> None:
    size = 64 << 20
    with (tmp_path / "sparse").open("wb") as file:
        if layout == "hole first":
            os.pwrite(file.fileno(), b"end", size - 3)
        elif layout == "hole last":
            os.pwrite(file.fileno(), b"begin", 0)
        elif layout == "many":
            for number in range(100):
                os.pwrite(file.fileno(), b"%d" % number, number * (size // 100))
        file.truncate(size)
    into = tmp_path / "into"
    into.mkdir()
    content = packed(tmp_path, "sparse", "copy")
    assert len(content) < 2 << 20
    assert extracted(content, into).size < 2 << 20
    assert (into / "copy").read_bytes() == (tmp_path / "sparse").read_bytes()
    assert (into / "copy").stat().st_blocks * 512 < 2 << 20


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * (4 << 20))
    fd = os.open(tmp_path, os.O_PATH)
    out = io.BytesIO()
    pack(out, fd, "file", "file", told=lambda totals: os.truncate(tmp_path / "file", 100))
    os.close(fd)
    into = tmp_path / "into"
    into.mkdir()
    extracted(out.getvalue(), into)
    assert (into / "file").stat().st_size == 4 << 20


def test_links_are_copied_or_followed_in_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("the root's own")
    (root / "link").symlink_to("/etc/passwd")
    (root / "out").symlink_to("../../../../../../etc")
    into = tmp_path / "into"
    into.mkdir()
    extracted(packed(root, "link", "a"), into)
    extracted(packed(root, "link", "b", follow=True), into)
    extracted(packed(root, "out/passwd", "c"), into)
    assert os.readlink(into / "a") == "/etc/passwd"
    assert (into / "b").read_text() == (into / "c").read_text() == "the root's own"


@pytest.mark.parametrize("path", ["none", "none/below", "data/file/below"])
def test_what_is_not_there(source: Path, path: str) -> None:
    with pytest.raises((NotFound, FailedPrecondition), match=r"data/file/below|none"):
        packed(source, path, "copy")


def test_an_owner_for_everything_takes_set_id_bits_away(tmp_path: Path) -> None:
    (tmp_path / "program").touch()
    (tmp_path / "program").chmod(0o6755)
    into = tmp_path / "into"
    into.mkdir()
    content = packed(tmp_path, "program", "copy")
    extracted(content, into, owner=ME)
    assert (into / "copy").stat().st_mode & 0o7777 == 0o755
    extracted(content, into)
    assert (into / "copy").stat().st_mode & 0o7777 == 0o6755


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    info.uid, info.gid = ME
    return info, data


def archive_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


SYM, HARD, DIR = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    "members",
    [
        [member("../escaped", data=b"x")],
        [member("a/../../escaped", data=b"x")],
        [member("a", SYM, ".."), member("a/escaped", data=b"x")],
        [member("a", SYM, "/"), member("a/{outside}/escaped", data=b"x")],
        [member("a", SYM, "{outside}"), member("a", DIR), member("a/b", SYM, "{outside}"), member("a/b/escaped")],
        [member("a", HARD, "../outside/secret")],
        [member("a", HARD, "{outside}/secret")],
        [member("l", SYM, "{outside}"), member("a", HARD, "l/secret")],
        [member("there/escaped", data=b"x")],
    ],
    ids=lambda members: "+".join(f"{info.name}{'→' + info.linkname if info.linkname else ''}" for info, _ in members),
)
def test_nothing_is_written_outside(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    outside, into = tmp_path / "outside", tmp_path / "into"
    outside.mkdir()
    into.mkdir()
    (outside / "secret").write_text("secret")
    (into / "there").symlink_to(outside)
    for info, _ in members:
        info.name = info.name.format(outside=outside)
        info.linkname = info.linkname.format(outside=outside)
    with pytest.raises(KataError):
        extracted(archive_of(*members), into)
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").stat().st_nlink == 1
    assert sorted(os.listdir(tmp_path)) == ["into", "outside"]


def test_an_absolute_name_is_beneath_as_well(tmp_path: Path) -> None:
    extracted(archive_of(member("/etc/passwd", data=b"x")), tmp_path)
    assert (tmp_path / "etc/passwd").read_text() == "x"


@pytest.mark.parametrize(
    "members",
    [[member(".bashrc", data=b"x")], [member("wanted"), member(".ssh", DIR)], [member("wanted", HARD, "mine")]],
)
def test_nothing_is_written_beside_what_was_asked_for(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    (tmp_path / "mine").touch()
    fd = os.open(tmp_path, os.O_PATH)
    with pytest.raises(InvalidArgument, match="is not what was asked for, 'wanted'"):
        extract(io.BytesIO(archive_of(*members)), fd, "test", owner=None, only="wanted")
    os.close(fd)
    assert not {".bashrc", ".ssh"} & set(os.listdir(tmp_path))
    assert (tmp_path / "mine").stat().st_nlink == 1


def test_a_link_is_replaced_not_written_through(tmp_path: Path) -> None:
    outside, into = tmp_path / "outside", tmp_path / "into"
    into.mkdir()
    outside.write_text("mine")
    (into / "a").symlink_to(outside)
    os.link(outside, into / "b")
    extracted(archive_of(member("a", data=b"x"), member("b", data=b"y")), into)
    assert outside.read_text() == "mine"
    assert (into / "a").read_text() + (into / "b").read_text() == "xy"


def test_device_nodes_are_left_out(tmp_path: Path) -> None:
    totals = extracted(archive_of(member("null", tarfile.CHRTYPE), member("disk", tarfile.BLKTYPE)), tmp_path)
    assert (os.listdir(tmp_path), totals.skipped) == ([], ["null", "disk"])


def test_a_directory_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    with pytest.raises(FailedPrecondition, match="cannot replace the directory 'a' by a file"):
        extracted(archive_of(member("a", data=b"x")), tmp_path)


def sparse(table: bytes, realsize: int, data: bytes) -> bytes:
    info = tarfile.TarInfo("GNUSparseFile.0/a")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a",
        "GNU.sparse.realsize": str(realsize),
    }
    content = table + bytes(-len(table) % 512) + data
    info.size = len(content)
    return archive_of((info, content))


def test_a_sparse_file_by_hand(tmp_path: Path) -> None:
    extracted(sparse(b"2\n1\n2\n5\n1\n", 7, b"abc"), tmp_path)
    assert (tmp_path / "a").read_bytes() == b"\0ab\0\0c\0"


@pytest.mark.parametrize(
    "content",
    [
        sparse(b"1\n0\n5\n", 3, b"abcde"),
        sparse(b"2\n4\n1\n0\n1\n", 10, b"ab"),
        sparse(b"2\n0\n3\n2\n3\n", 10, b"abcdef"),
        sparse(b"1\n0\n9\n", 10, b"abc"),
        sparse(b"x\n", 10, b"abc"),
        sparse(b"1\n0\nx\n", 10, b"abc"),
        sparse(b"1\n\0\n3\n", 10, b"abc"),
        sparse(b"-1\n", 10, b"abc"),
        sparse(b"99999999999\n", 10, b"abc"),
        sparse(b"9", 10, b""),
        sparse(b"1" * 2000, 10, b""),
    ],
)
def test_sparse_files_that_contradict_themselves(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InvalidArgument, match="sparse"):
        extracted(content, tmp_path)


@pytest.mark.parametrize("cut", [100, 600, 1100])
def test_a_stream_that_ends_early(source: Path, tmp_path: Path, cut: int) -> None:
    into = tmp_path / "into"
    into.mkdir()
    (source / "one").write_bytes(b"x" * 1000)
    with pytest.raises(InvalidArgument):
        extracted(packed(source, "one", "one")[:cut], into)


def test_a_change_between_look_and_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody replaces a file by a FIFO, which would block, and by a link that leads out."""
    real: Callable[..., os.stat_result] = os.stat

    def stat_and_replace(path: str, **options: object) -> os.stat_result:
        found = real(path, **options)
        if path == "file":
            os.unlink(source / "data/file")
            os.mkfifo(source / "data/file")
        if path == "empty":
            os.unlink(source / "data/empty")
            (source / "data/empty").symlink_to("/etc/passwd")
        return found

    monkeypatch.setattr(os, "stat", stat_and_replace)
    with pytest.raises(FailedPrecondition, match="cannot read copy/empty"):
        packed(source, "data", "copy")


def test_zeros_become_a_hole(tmp_path: Path) -> None:
    """What a guest sends whose file system does not tell its holes."""
    extracted(archive_of(member("a", data=b"x" + bytes(4 << 20) + b"y")), tmp_path)
    assert (tmp_path / "a").read_bytes() == b"x" + bytes(4 << 20) + b"y"
    assert (tmp_path / "a").stat().st_blocks * 512 < 2 << 20


def test_attributes(source: Path, tmp_path: Path) -> None:
    data, into = source / "data", tmp_path / "into"
    into.mkdir()
    try:
        os.setxattr(data / "file", "user.note", b"a=b\n\0\xff" + b"x" * 1000)
        os.setxattr(data / "deep", "user.\udcff", b"")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    os.setxattr(data / "empty", "user.odd=name", b"1")
    out = io.BytesIO()
    fd = os.open(source, os.O_PATH)
    sent = pack(out, fd, "/data", "copy", attributes=True)
    os.close(fd)
    assert sent.plain == ["copy/empty"]
    extracted(out.getvalue(), into, ME)
    assert os.listxattr(into / "copy/file") == []
    kept = extracted(out.getvalue(), into)
    assert kept.plain is None
    assert os.getxattr(into / "copy/file", "user.note") == b"a=b\n\0\xff" + b"x" * 1000
    assert os.getxattr(into / "copy/deep", "user.\udcff") == b""
    assert tree(into / "copy") == tree(data)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        assert archive.getmember("copy/file").pax_headers["SCHILY.xattr.user.note"].startswith("a=b\n")
    shutil.rmtree(into)
    into.mkdir()
    extracted(packed(source, "/data", "copy"), into)
    assert os.listxattr(into / "copy/file") == [], "only if they are asked for"


def test_attributes_that_are_not_kept(tmp_path: Path) -> None:
    """Of an archive that somebody else has made: what means something to this host only, and what cannot be set."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("file")
        info.uid, info.gid = ME
        info.pax_headers = {
            "SCHILY.xattr.trusted.overlay.opaque": "y",
            "SCHILY.xattr.security.selinux": "x",
            "SCHILY.xattr.system.posix_acl_access": "no list",
        }
        archive.addfile(info)
    totals = extracted(out.getvalue(), tmp_path)
    assert set(os.listxattr(tmp_path / "file")) <= {"security.selinux"}
    assert totals.plain == ["file"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_lists_and_capabilities(tmp_path: Path) -> None:
    # POSIX ACL, version 2: user::rw-, user:1234:r--, group::r--, mask::r--, other::---  (linux/posix_acl_xattr.h)
    entries = [(1, 6, -1), (2, 4, 1234), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    # cap_net_raw=p, version 2 (linux/capability.h, vfs_cap_data)
    capability = struct.pack("<5I", 0x02000000, 1 << 13, 0, 0, 0)
    file, into = tmp_path / "file", tmp_path / "into"
    file.write_bytes(b"x")
    into.mkdir()
    os.chown(file, 1234, 5678)
    os.setxattr(file, "security.capability", capability)
    try:
        os.setxattr(file, "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("this file system has no access control lists")
    mode = file.stat().st_mode
    out = io.BytesIO()
    fd = os.open(tmp_path, os.O_PATH)
    pack(out, fd, "file", "copy", attributes=True)
    os.close(fd)
    extracted(out.getvalue(), into)
    copy = into / "copy"
    assert os.getxattr(copy, "system.posix_acl_access") == acl
    assert os.getxattr(copy, "security.capability") == capability
    assert (copy.stat().st_mode, copy.stat().st_uid) == (mode, 1234)
