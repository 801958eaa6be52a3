"""Unpacking: what honest layers become, and what hostile ones cannot do."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata.errors import AlreadyExists, InvalidArgument, KataError, PermissionDenied, ResourceExhausted
from kata.runtime.images.archive import open_archive
from kata.runtime.images.model import UnpackLimits
from kata.runtime.images.tree import MAX_DEPTH
from kata.runtime.images.unpack import unpack

from .builder import Oci, directory, entry, hard_link, layer, sha256, skippable, symlink, unpacked, zstd_compress

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: ownership and device nodes")


def tree(path: Path) -> dict[str, str]:
    """Every path beneath with what is there: content, link target, or "dir"."""
    found = {}
    for parent, names, files in os.walk(path):
        for name in names + files:
            item = Path(parent, name)
            kind = "dir" if item.is_dir() else "other"
            if item.is_symlink():
                kind = f"-> {os.readlink(item)}"
            elif item.is_file():
                kind = item.read_text()
            found[str(item.relative_to(path))] = kind
    return found


def facts(path: Path) -> dict[str, tuple[object, ...]]:
    """What lstat and the attributes say about everything beneath, the directory itself included."""
    found: dict[str, tuple[object, ...]] = {}
    for item in [path, *path.rglob("*")]:
        info = item.lstat()
        names = sorted(os.listxattr(item, follow_symlinks=False))
        found[str(item.relative_to(path))] = (
            info.st_mode,
            info.st_uid,
            info.st_gid,
            info.st_size if stat.S_ISREG(info.st_mode) else 0,
            info.st_nlink if stat.S_ISREG(info.st_mode) else 0,
            info.st_rdev,
            info.st_mtime_ns,
            os.readlink(item) if item.is_symlink() else item.read_bytes() if item.is_file() else b"",
            [(name, os.getxattr(item, name, follow_symlinks=False)) for name in names],
        )
    return found


class TestHonest:
    @root_only
    def test_the_same_as_tar_makes(self, tmp_path: Path) -> None:
        """Everything a file system has, through GNU tar and through us."""
        source = tmp_path / "source"
        (source / "usr/bin").mkdir(parents=True)
        (source / "bin").symlink_to("usr/bin")
        (source / "usr/bin/tool").write_bytes(os.urandom(300_000))
        (source / "usr/bin/tool").chmod(0o4755)
        os.link(source / "usr/bin/tool", source / "usr/bin/other")
        (source / "empty").touch()
        os.chown(source / "empty", 70_000, 3_000_000)
        (source / "tmp").mkdir()
        (source / "tmp").chmod(0o1777)
        (source / "closed").mkdir(mode=0o000)
        os.mkfifo(source / "fifo", 0o640)
        os.mknod(source / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(source / "disk", 0o600 | stat.S_IFBLK, os.makedev(259, 70_000))
        (source / ("ü" * 60)).mkdir()
        (source / ("ü" * 60) / ("n" * 200)).write_text("long")
        (source / "dangling").symlink_to("/absent" + "/x" * 250)
        capability = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_raw in the file's set
        os.setxattr(source / "usr/bin/tool", "security.capability", capability)
        os.setxattr(source / "empty", "user.note", b"\x00\xff\n")
        for number, path in enumerate(sorted(source.rglob("*"), reverse=True)):
            os.utime(path, ns=(10**18, 10**18 + number * 1_000_000_007), follow_symlinks=False)
        os.utime(source, ns=(10**18, 10**18))

        packed = tmp_path / "layer.tar"
        options = ["--xattrs", "--xattrs-include=*", "--numeric-owner"]
        subprocess.run(["tar", "-C", source, "--format=pax", *options, "-cf", packed, "."], check=True, timeout=30)
        reference = tmp_path / "reference"
        reference.mkdir()
        subprocess.run(["tar", "-C", reference, *options, "-xpf", packed], check=True, timeout=30)
        target = unpacked(tmp_path, packed.read_bytes())

        assert facts(target) == facts(reference) == facts(source)

    def test_upper_layers_win(self, tmp_path: Path) -> None:
        target = unpacked(
            tmp_path,
            layer(directory("d"), entry("d/a", b"1"), entry("d/b", b"1"), entry("file", b"1"), directory("gone/deep")),
            layer(entry("d/a", b"2"), directory("file"), entry("file/x", b"2"), entry("gone", b"2")),
        )
        assert tree(target) == {"d": "dir", "d/a": "2", "d/b": "1", "file": "dir", "file/x": "2", "gone": "2"}

    def test_a_directory_that_is_listed_again_keeps_its_files_and_takes_the_mode(self, tmp_path: Path) -> None:
        target = unpacked(tmp_path, layer(directory("d"), entry("d/a", b"1")), layer(directory("d", mode=0o711)))
        assert stat.S_IMODE((target / "d").stat().st_mode) == 0o711
        assert (target / "d/a").exists()

    def test_missing_parents_are_made(self, tmp_path: Path) -> None:
        before = os.umask(0o077)
        try:
            target = unpacked(tmp_path, layer(entry("a/b/c", b"1")))
        finally:
            os.umask(before)
        assert stat.S_IMODE((target / "a/b").stat().st_mode) == 0o755
        assert stat.S_IMODE((target / "a/b/c").stat().st_mode) == 0o644
        assert stat.S_IMODE(target.stat().st_mode) == 0o755

    def test_the_root_may_be_listed(self, tmp_path: Path) -> None:
        target = unpacked(tmp_path, layer(directory("./", mode=0o750, mtime=5), entry("./a", b"1")))
        assert (stat.S_IMODE(target.stat().st_mode), target.stat().st_mtime) == (0o750, 5)

    def test_times_of_directories_survive_what_is_put_into_them(self, tmp_path: Path) -> None:
        target = unpacked(
            tmp_path,
            layer(directory("d", mtime=1), entry("d/a", b"1"), directory("e", mtime=1)),
            layer(directory("d", mtime=2), entry("d/b", b"1")),
        )
        assert [(target / name).stat().st_mtime for name in "de"] == [2, 1]

    def test_links_to_directories_are_followed_on_the_way_and_replaced_at_the_end(self, tmp_path: Path) -> None:
        lower = layer(directory("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/usr/lib"))
        target = unpacked(tmp_path, lower, layer(entry("lib/x", b"1"), entry("abs/y", b"1"), directory("lib")))
        assert tree(target / "usr/lib") == {"x": "1", "y": "1"}
        assert not (target / "lib").is_symlink()

    def test_hard_links_share_the_file(self, tmp_path: Path) -> None:
        target = unpacked(tmp_path, layer(entry("a/f", b"1"), hard_link("b/g", "./a/f"), hard_link("h", "/b/g")))
        assert (target / "h").stat().st_ino == (target / "a/f").stat().st_ino

    def test_a_hard_link_to_a_symbolic_link(self, tmp_path: Path) -> None:
        target = unpacked(tmp_path, layer(symlink("s", "/etc/passwd"), hard_link("t", "s")))
        assert os.readlink(target / "t") == "/etc/passwd"

    def test_no_layers_give_an_empty_root(self, tmp_path: Path) -> None:
        assert tree(unpacked(tmp_path)) == {}


class TestWhiteouts:
    LOWER = layer(directory("d/sub"), entry("d/a", b"1"), entry("d/sub/b", b"1"), entry("e", b"1"))

    def test_a_name_is_removed(self, tmp_path: Path) -> None:
        target = unpacked(tmp_path, self.LOWER, layer(entry("d/.wh.sub", b""), entry(".wh.e", b"")))
        assert tree(target) == {"d": "dir", "d/a": "1"}

    @pytest.mark.parametrize("first", [True, False])
    def test_an_opaque_directory_hides_lower_layers_only(self, tmp_path: Path, first: bool) -> None:
        entries = [entry("d/new", b"2"), entry("d/sub/c", b"2")]
        entries.insert(0 if first else 2, entry("d/.wh..wh..opq", b""))
        target = unpacked(tmp_path, self.LOWER, layer(*entries))
        assert tree(target) == {"d": "dir", "d/new": "2", "d/sub": "dir", "d/sub/c": "2", "e": "1"}

    @pytest.mark.parametrize("first", [True, False])
    def test_what_the_same_layer_makes_stays(self, tmp_path: Path, first: bool) -> None:
        entries = [directory("d"), entry("d/new", b"2")]
        entries.insert(0 if first else 2, entry(".wh.d", b""))
        assert tree(unpacked(tmp_path, self.LOWER, layer(*entries))) == {"d": "dir", "d/new": "2", "e": "1"}

    def test_an_opaque_root(self, tmp_path: Path) -> None:
        assert tree(unpacked(tmp_path, self.LOWER, layer(entry(".wh..wh..opq", b""), entry("x", b"")))) == {"x": ""}

    def test_nothing_to_remove(self, tmp_path: Path) -> None:
        upper = layer(
            entry(".wh.no", b""), entry("no/where/.wh.x", b""), entry("e/.wh.x", b""), entry("no/.wh..wh..opq")
        )
        assert tree(unpacked(tmp_path, self.LOWER, upper)) == tree(unpacked_again(tmp_path, self.LOWER))

    def test_what_aufs_kept_for_itself_is_left_out(self, tmp_path: Path) -> None:
        assert tree(unpacked(tmp_path, layer(directory(".wh..wh.plnk"), entry(".wh..wh.aufs", b"")))) == {}

    def test_the_link_goes_and_not_what_it_leads_to(self, tmp_path: Path) -> None:
        target = unpacked(tmp_path, self.LOWER, layer(symlink("s", "d")), layer(entry(".wh.s", b"")))
        assert tree(target) == tree(unpacked_again(tmp_path, self.LOWER))


def unpacked_again(tmp_path: Path, *layers: bytes) -> Path:
    (tmp_path / "again").mkdir()
    return unpacked(tmp_path / "again", *layers)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What hostile layers aim at: a file and a directory beside the target, at ../outside from its root."""
    victim = tmp_path / "jail/outside"
    victim.mkdir(parents=True)
    (victim / "file").write_text("precious")
    return victim


def attacked(tmp_path: Path, outside: Path, *layers: bytes) -> KataError | None:
    """The error if there was one; the outside is as it was, and a failure leaves no target."""
    before, error = facts(tmp_path / "jail/outside"), None
    descriptors = len(os.listdir("/proc/self/fd"))
    target = tmp_path / "jail/target"
    try:
        unpacked(tmp_path, *layers)
    except KataError as caught:
        error = caught
    assert facts(outside) == before
    assert sorted(os.listdir(tmp_path / "jail")) == (["outside"] if error else ["outside", "target"])
    assert len(os.listdir("/proc/self/fd")) == descriptors
    if error:
        assert "\n" not in error.message
        assert len(error.message) < 500
    else:
        shutil.rmtree(target)
    return error


class TestHostile:
    def test_dots_are_refused(self, tmp_path: Path, outside: Path) -> None:
        for name in ("../outside/file", "a/../../outside/file", "..", "/../x", "a/.."):
            for item in (entry(name, b"evil"), directory(name), symlink(name, "x"), hard_link(name, "f")):
                assert isinstance(attacked(tmp_path, outside, layer(entry("f", b""), item)), InvalidArgument)

    def test_absolute_paths_are_beneath_the_root(self, tmp_path: Path, outside: Path) -> None:
        assert attacked(tmp_path, outside, layer(entry(str(outside / "file"), b"evil"))) is None

    @pytest.mark.parametrize("aim", ["../outside", "../../../../../../../../..{}", "{}"])
    @pytest.mark.parametrize("split", [False, True])
    def test_parents_that_are_links_out(self, tmp_path: Path, outside: Path, aim: str, split: bool) -> None:
        link = symlink("door", aim.format(outside))
        for item in (
            entry("door/file", b"evil"),
            entry("door/new", b"evil"),
            directory("door/new"),
            symlink("door/new", "x"),
            hard_link("door/new", "mine"),
            entry("door/fifo", type=tarfile.FIFOTYPE),
            entry("door/.wh.file", b""),
            entry("door/.wh..wh..opq", b""),
        ):
            start = [entry("mine", b"x"), link]
            layers = [layer(*start), layer(item)] if split else [layer(*start, item)]
            attacked(tmp_path, outside, *layers)

    def test_links_to_files_are_replaced_and_not_written_through(self, tmp_path: Path, outside: Path) -> None:
        for aim in ("../outside/file", str(outside / "file")):
            assert attacked(tmp_path, outside, layer(symlink("f", aim), entry("f", b"evil", mode=0o777))) is None
            assert attacked(tmp_path, outside, layer(symlink("f", aim), entry("f", type=tarfile.FIFOTYPE))) is None

    def test_directories_do_not_change_what_links_lead_to(self, tmp_path: Path, outside: Path) -> None:
        for aim in ("../outside", str(outside)):
            assert attacked(tmp_path, outside, layer(symlink("d", aim), directory("d", mode=0o777, mtime=1))) is None

    def test_hard_links_out(self, tmp_path: Path, outside: Path) -> None:
        for aim in ("../outside/file", str(outside / "file"), "door/file", "d/../../outside/file"):
            start = (directory("d"), symlink("door", "../outside"))
            error = attacked(tmp_path, outside, layer(*start, hard_link("h", aim), entry("h", b"evil")))
            assert isinstance(error, InvalidArgument)

    def test_a_hard_link_to_a_link_out_is_not_written_through(self, tmp_path: Path, outside: Path) -> None:
        items = (symlink("s", str(outside / "file")), hard_link("h", "s"), entry("h", b"evil", mode=0o777))
        assert attacked(tmp_path, outside, layer(*items)) is None

    @pytest.mark.parametrize("name", [".wh..", ".wh...", ".wh.", "d/.wh..", "d/.wh...", "../.wh.outside", "d/../.wh.d"])
    def test_whiteouts_of_dots(self, tmp_path: Path, outside: Path, name: str) -> None:
        assert isinstance(attacked(tmp_path, outside, layer(directory("d"), entry(name, b""))), InvalidArgument)

    @pytest.mark.parametrize("name", ["../.wh..wh..opq", "d/../../outside/.wh..wh..opq"])
    def test_opaque_dots(self, tmp_path: Path, outside: Path, name: str) -> None:
        assert isinstance(attacked(tmp_path, outside, layer(directory("d"), entry(name, b""))), InvalidArgument)

    def test_a_link_to_itself_in_the_place_of_a_directory(self, tmp_path: Path, outside: Path) -> None:
        attacked(tmp_path, outside, layer(directory("a/a"), symlink("a", "a")))

    def test_links_in_circles(self, tmp_path: Path, outside: Path) -> None:
        error = attacked(tmp_path, outside, layer(symlink("a", "b"), symlink("b", "a"), entry("a/x", b"")))
        assert isinstance(error, InvalidArgument)
        error = attacked(tmp_path, outside, layer(symlink("a", "nowhere"), entry("a/x", b"")))
        assert isinstance(error, InvalidArgument)

    def test_links_into_proc_are_paths_in_the_root(self, tmp_path: Path, outside: Path) -> None:
        error = attacked(tmp_path, outside, layer(symlink("p", "/proc/self/cwd"), entry("p/kata-evil", b"")))
        assert isinstance(error, InvalidArgument)
        assert not Path("kata-evil").exists()

    @pytest.mark.parametrize(
        "items",
        [
            (entry("f", b""), entry("f/x", b"")),
            (hard_link("h", "absent"),),
            (hard_link("h", "h"),),
            (hard_link("h", "."),),
            (directory("d"), hard_link("h", "d")),
            (entry("n" * 300, b""),),
            (entry(".", b"not a directory"),),
            (symlink("/", "x"),),
            (symlink("s", ""),),
        ],
    )
    def test_the_impossible_is_refused(
        self, tmp_path: Path, outside: Path, items: tuple[tuple[tarfile.TarInfo, bytes | None], ...]
    ) -> None:
        assert isinstance(attacked(tmp_path, outside, layer(*items)), InvalidArgument)

    def test_depth_is_bounded_even_through_links(self, tmp_path: Path, outside: Path) -> None:
        assert isinstance(attacked(tmp_path, outside, layer(entry("d/" * 300 + "f", b""))), InvalidArgument)
        half = "d/" * (MAX_DEPTH // 2)
        items = [directory(half), symlink("s", half), directory("s/" + half + half)]
        assert isinstance(attacked(tmp_path, outside, layer(*items)), InvalidArgument)
        assert attacked(tmp_path, outside, layer(directory("d/" * (MAX_DEPTH - 1)))) is None

    def test_attributes_that_command_overlayfs_are_left_out(self, tmp_path: Path) -> None:
        names = ("trusted.overlay.redirect", "user.overlay.redirect", "user.fine", "security.selinux")
        pax = {f"SCHILY.xattr.{name}": "/x" for name in names}
        target = unpacked(tmp_path, layer(directory("d", pax_headers=pax)))
        assert os.listxattr(target / "d") == ["user.fine"]

    def test_the_number_of_entries_is_bounded(self, tmp_path: Path, outside: Path) -> None:
        many = layer(*(directory(f"{number}") for number in range(40)))
        with pytest.raises(ResourceExhausted, match="more than 100 entries"):
            unpacked(tmp_path, many, many, many, limits=UnpackLimits(entries=100))
        assert os.listdir(tmp_path / "jail") == ["outside"]

    @pytest.mark.parametrize("compress", [gzip.compress, zstd_compress])
    def test_a_bomb_is_stopped_at_the_limit(
        self, tmp_path: Path, outside: Path, compress: Callable[[bytes], bytes]
    ) -> None:
        for plain in (layer(entry("f", bytes(50_000_000))), layer() + bytes(50_000_000)):
            path = Oci(plain, compress=compress).write(tmp_path / "image.tar")
            assert path.stat().st_size < 100_000
            with open_archive(path) as image, pytest.raises(ResourceExhausted, match="more than 1000000 bytes"):
                unpack(image, tmp_path / "jail/target", UnpackLimits(size=1_000_000))
            assert os.listdir(tmp_path / "jail") == ["outside"]

    def test_the_limit_counts_all_layers(self, tmp_path: Path) -> None:
        one = layer(entry("f", bytes(100_000)))
        with pytest.raises(ResourceExhausted):
            unpacked(tmp_path, one, one, one, limits=UnpackLimits(size=250_000))


# No "..": an archive is refused at the first one, and then nothing else is tried.
WAYS = ["", "door/", "a/", "/", "./"]
ENDS = ["a", "door", "file", "outside", ".wh.a", ".wh.file", ".wh..wh..opq"]
PATHS = st.builds("{}{}{}".format, st.sampled_from(WAYS), st.sampled_from(WAYS), st.sampled_from(ENDS))
AIMS = st.sampled_from(["../outside", "../outside/file", "..", "/", "/outside", "a", "door", "."])
ENTRIES = st.one_of(
    st.builds(entry, PATHS, st.just(b"evil")),
    st.builds(directory, PATHS),
    st.builds(symlink, st.sampled_from(["door", "a", "a/door"]), AIMS),
    st.builds(hard_link, PATHS, PATHS),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.lists(ENTRIES, max_size=12), min_size=1, max_size=3))
def test_no_combination_gets_out(
    tmp_path: Path, outside: Path, layers: list[list[tuple[tarfile.TarInfo, bytes | None]]]
) -> None:
    attacked(tmp_path, outside, *(layer(*entries) for entries in layers))


class TestTarget:
    def test_a_target_with_something_in_it_stays_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "jail/target").mkdir(parents=True)
        (tmp_path / "jail/target/mine").touch()
        with pytest.raises(AlreadyExists):
            unpacked(tmp_path, layer(entry("a", b"")))
        assert os.listdir(tmp_path / "jail/target") == ["mine"]

    def test_a_target_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with open_archive(Oci().write(tmp_path / "image.tar")) as image:
            for target in ("absent/target", "file", "file/target"):
                with pytest.raises(InvalidArgument, match="cannot unpack"):
                    unpack(image, tmp_path / target)

    @root_only
    def test_a_full_disk(self, tmp_path: Path) -> None:
        disk = tmp_path / "jail"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True, timeout=10)
        try:
            with pytest.raises(ResourceExhausted) as caught:
                unpacked(tmp_path, layer(entry("a", os.urandom(700_000)), entry("b", os.urandom(700_000))))
            assert "no space left" in caught.value.message
            assert caught.value.hint is not None
            assert os.listdir(disk) == []
        finally:
            subprocess.run(["umount", disk], check=True, timeout=10)

    @root_only
    def test_without_root(self, tmp_path: Path) -> None:
        """Ownership is left out, devices are refused."""
        scratch = tempfile.TemporaryDirectory()  # tmp_path is beneath a directory that only root may enter
        home = Path(scratch.name)
        os.chown(home, 65534, 65534)
        honest = Oci(layer(entry("a", b"x", uid=7, mode=0o640))).write(tmp_path / "honest.tar")
        device = Oci(layer(entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3))).write(tmp_path / "device.tar")
        with scratch, open_archive(honest) as good, open_archive(device) as bad:
            os.seteuid(65534)
            try:
                unpack(good, home / "good")
                with pytest.raises(PermissionDenied) as caught:
                    unpack(bad, home / "bad")
            finally:
                os.seteuid(0)
            assert (home / "good/a").stat().st_uid == 65534
            assert stat.S_IMODE((home / "good/a").stat().st_mode) == 0o640
            assert caught.value.hint == "run as root"
            assert not (home / "bad").exists()


@pytest.mark.parametrize(
    "compress",
    [
        # pigz and estargz write a gzip file as many.
        lambda one, two: gzip.compress(one) + gzip.compress(two),
        # pzstd and zstd:chunked write several frames, and some to be skipped.
        lambda one, two: skippable(b"size") + zstd_compress(one) + zstd_compress(two) + skippable(b"contents"),
    ],
    ids=["gzip", "zstd"],
)
def test_compressed_layers_in_several_members(tmp_path: Path, compress: Callable[[bytes, bytes], bytes]) -> None:
    plain = layer(entry("a", b"x" * 5000), entry("b", b"y"))
    stored = compress(plain[:3000], plain[3000:])
    oci = Oci(stored, rootfs={"diff_ids": [sha256(plain)]})
    with open_archive(oci.write(tmp_path / "image.tar")) as image:
        unpack(image, tmp_path / "target")
    assert (tmp_path / "target/a").read_bytes() == b"x" * 5000
