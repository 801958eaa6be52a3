"""Opening images in both formats, whole and damaged."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kata.errors import InvalidArgument, KataError, NotFound, Unimplemented
from kata.runtime.images.archive import open_archive
from kata.runtime.images.model import ImageConfig
from kata.runtime.images.unpack import unpack

from .builder import Oci, docker_files, entry, layer, sha256, symlink, write_directory, write_tar, zstd_compress

LAYERS = (layer(entry("a", b"lower"), entry("b", b"stays")), layer(entry("a", b"upper")))
CONFIG = ImageConfig(entrypoint=("/e",), cmd=("c",), env=("A=1",), user="u", working_dir="/w", labels={})


def check(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with open_archive(path) as image:
        assert image.config == CONFIG
        assert len(image.layers) == 2
        unpack(image, target)
    assert (target / "a").read_bytes() == b"upper"
    assert (target / "b").read_bytes() == b"stays"


def refused(path: Path, tmp_path: Path) -> KataError:
    """The error of opening and unpacking; nothing may be left of the target."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KataError) as caught:
        with open_archive(path) as image:
            unpack(image, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert "\n" not in caught.value.message
    assert len(os.listdir("/proc/self/fd")) == before
    return caught.value


class TestFormats:
    @pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd_compress])
    def test_an_oci_archive(self, tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
        check(Oci(*LAYERS, compress=compress).write(tmp_path / "image.tar"), tmp_path)

    def test_an_oci_layout_directory(self, tmp_path: Path) -> None:
        check(write_directory(tmp_path / "image", Oci(*LAYERS).complete()), tmp_path)

    def test_a_docker_archive(self, tmp_path: Path) -> None:
        check(write_tar(tmp_path / "image.tar", docker_files(*LAYERS)), tmp_path)

    def test_docker_layers_may_be_links_to_each_other(self, tmp_path: Path) -> None:
        same = layer(entry("a", b"x"))
        files = docker_files(same, same)
        del files["1/layer.tar"]
        entries = [entry(name, content) for name, content in files.items()]
        (tmp_path / "image.tar").write_bytes(layer(*entries, symlink("1/layer.tar", "../0/layer.tar")))
        with open_archive(tmp_path / "image.tar") as image:
            unpack(image, tmp_path / "target")
        assert (tmp_path / "target/a").read_bytes() == b"x"

    def test_links_in_circles_end(self, tmp_path: Path) -> None:
        files = docker_files(LAYERS[0])
        del files["0/layer.tar"]
        entries = [entry(name, content) for name, content in files.items()]
        (tmp_path / "image.tar").write_bytes(
            layer(*entries, symlink("0/layer.tar", "other"), symlink("0/other", "layer.tar"))
        )
        assert "layer.tar' is missing" in refused(tmp_path / "image.tar", tmp_path).message

    def test_the_digests(self, tmp_path: Path) -> None:
        oci = Oci(*LAYERS)
        with open_archive(oci.write(tmp_path / "oci.tar")) as image:
            assert image.digest == oci.descriptors[0]["digest"]
        files = docker_files(*LAYERS)
        with open_archive(write_tar(tmp_path / "docker.tar", files)) as image:
            assert image.digest == sha256(next(content for name, content in files.items() if len(name) == 69))


class TestChoice:
    def index(self, *names: str, **platform: str) -> Oci:
        """A layout with an image for each name, which it gives as its command."""
        oci = Oci(config={"Cmd": [names[0]]})
        oci.descriptors = []
        for name in names:
            other = Oci(config={"Cmd": [name]})
            oci.files |= other.files
            oci.descriptors += [other.descriptors[0] | {"annotations": {"org.opencontainers.image.ref.name": name}}]
        return oci

    def command(self, oci: Oci, tmp_path: Path, reference: str | None = None) -> str:
        with open_archive(oci.write(tmp_path / "image.tar"), reference=reference) as image:
            return image.config.cmd[0]

    def test_the_platform_decides(self, tmp_path: Path) -> None:
        oci = self.index("arm", "amd", "attestation")
        for descriptor, architecture in zip(oci.descriptors, ("arm64", "amd64", "unknown"), strict=True):
            descriptor["platform"] = {"os": "linux", "architecture": architecture}
        assert self.command(oci, tmp_path) == "amd"
        with open_archive(tmp_path / "image.tar", platform="linux/amd64") as image:
            assert image.config.cmd == ("amd",)

    def test_of_another_platform(self, tmp_path: Path) -> None:
        oci = Oci(architecture="arm64")
        with open_archive(oci.write(tmp_path / "image.tar"), platform="linux/arm64") as image:
            assert image.digest
        with pytest.raises(InvalidArgument, match="image is for 'linux/amd64', not for linux/arm64"):
            open_archive(Oci().write(tmp_path / "image.tar"), platform="linux/arm64")

    def test_indexes_may_be_nested_and_give_their_names(self, tmp_path: Path) -> None:
        oci = self.index("one", "two")
        for number in range(2):
            del oci.descriptors[number]["annotations"]
            index = oci.blob(json.dumps({"manifests": [oci.descriptors[number]]}).encode(), "index.v1")
            oci.descriptors[number] = index | {"annotations": {"io.containerd.image.name": f"registry/{number}"}}
        assert self.command(oci, tmp_path, "registry/1") == "two"

    def test_several_images_need_a_reference(self, tmp_path: Path) -> None:
        oci = self.index("one", "two")
        assert self.command(oci, tmp_path, "two") == "two"
        for reference, words in ((None, "2 images"), ("three", "no image named 'three'")):
            with pytest.raises(InvalidArgument) as caught:
                self.command(oci, tmp_path, reference)
            assert words in caught.value.message
            assert caught.value.hint == "it holds: 'one', 'two'"

    def test_no_image_for_the_platform(self, tmp_path: Path) -> None:
        oci = self.index("arm")
        oci.descriptors[0]["platform"] = {"os": "linux", "architecture": "arm64"}
        error = refused(oci.write(tmp_path / "image.tar"), tmp_path)
        assert "no image for linux/amd64" in error.message
        assert error.hint == "kata run --platform linux/arm64 runs it, emulated"
        error = refused(Oci(architecture="arm64").write(tmp_path / "image.tar"), tmp_path)
        assert "'linux/arm64'" in error.message
        assert error.hint == "kata run --platform linux/arm64 runs it, emulated"
        assert (
            refused(Oci(architecture="mips").write(tmp_path / "image.tar"), tmp_path).hint == "it is for 'linux/mips'"
        )

    def test_an_index_that_lists_itself_many_times_is_read_once(self, tmp_path: Path) -> None:
        oci = self.index("one")
        index = oci.blob(json.dumps({"manifests": oci.descriptors * 2000}).encode(), "index.v1")
        for _ in range(5):
            index = oci.blob(json.dumps({"manifests": [index] * 2000}).encode(), "index.v1")
        oci.descriptors = [index]
        assert self.command(oci, tmp_path) == "one"

    def test_too_many_indexes(self, tmp_path: Path) -> None:
        oci = Oci()
        for number in range(101):
            oci.descriptors.append(oci.blob(json.dumps({"n": number}).encode(), "index.v1"))
        assert "more than 100 indexes" in refused(oci.write(tmp_path / "image.tar"), tmp_path).message


class TestDamage:
    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound):
            open_archive(tmp_path / "absent")

    def test_a_fifo_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        assert isinstance(refused(tmp_path / "fifo", tmp_path), InvalidArgument)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "not a container image"),
            (b"\0" * 10240, "not a container image"),
            (b"hello", "no tar header"),
            (b"x" * 5000, "no tar header"),
            (gzip.compress(layer(entry("a", b"x"))), "is a compressed archive"),
            (layer(entry("a", b"x")), "not a container image"),
        ],
        ids=["empty", "zeros", "short", "letters", "gzip", "tar"],
    )
    def test_not_an_image(self, tmp_path: Path, content: bytes, words: str) -> None:
        (tmp_path / "image.tar").write_bytes(content)
        assert words in refused(tmp_path / "image.tar", tmp_path).message

    def test_an_empty_directory(self, tmp_path: Path) -> None:
        (tmp_path / "image").mkdir()
        assert "not a container image" in refused(tmp_path / "image", tmp_path).message

    @pytest.mark.parametrize("keep", [600, 2000, 3500])
    def test_a_cut_off_archive(self, tmp_path: Path, keep: int) -> None:
        path = Oci(*LAYERS).write(tmp_path / "image.tar")
        os.truncate(path, keep)
        assert isinstance(refused(path, tmp_path), InvalidArgument)

    @pytest.mark.parametrize("name", ["index.json", "oci-layout"])
    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b" " * (4 * 2**20 + 1)]
    )
    def test_documents_that_are_none(self, tmp_path: Path, name: str, content: bytes) -> None:
        files = Oci(*LAYERS).complete() | {name: content}
        error = refused(write_tar(tmp_path / "image.tar", files), tmp_path)
        assert isinstance(error, InvalidArgument)
        assert name in error.message
        assert len(error.message) < 500

    @pytest.mark.parametrize(
        "index",
        [
            {"manifests": {}},
            {"manifests": [1]},
            {"manifests": [{"mediaType": 5}]},
            {"manifests": [{"mediaType": "x", "digest": "sha256:../../../../etc/passwd"}]},
            {"manifests": [{"mediaType": "x", "digest": "md5:" + "0" * 32}]},
            {"manifests": [{"digest": "sha256:" + "0" * 64, "annotations": {"a": 1}}]},
            {"manifests": [{}] * 10_001},
            {"manifests": []},
        ],
    )
    def test_indexes_of_the_wrong_shape(self, tmp_path: Path, index: dict[str, Any]) -> None:
        files = Oci(*LAYERS).complete() | {"index.json": json.dumps(index).encode()}
        assert isinstance(refused(write_tar(tmp_path / "image.tar", files), tmp_path), InvalidArgument)

    @pytest.mark.parametrize(
        "changes",
        [
            {"config": []},
            {"config": {"Cmd": "sh"}},
            {"config": {"Env": [1]}},
            {"config": {"User": 0}},
            {"config": {"Labels": {"a": 1}}},
            {"rootfs": None},
            {"rootfs": {"diff_ids": []}},
            {"rootfs": {"diff_ids": ["sha256:x", "sha256:y"]}},
            {"os": "windows"},
            {"architecture": None},
        ],
    )
    @pytest.mark.parametrize("docker", [False, True])
    def test_configurations_of_the_wrong_shape(self, tmp_path: Path, changes: dict[str, Any], docker: bool) -> None:
        files = docker_files(*LAYERS, **changes) if docker else Oci(*LAYERS, **changes).complete()
        assert isinstance(refused(write_tar(tmp_path / "image.tar", files), tmp_path), InvalidArgument)

    def test_null_is_empty(self, tmp_path: Path) -> None:
        nulls = {"Entrypoint": None, "Cmd": None, "Env": None, "Labels": None}
        with open_archive(Oci(*LAYERS, config=nulls).write(tmp_path / "image.tar")) as image:
            assert image.config == ImageConfig(labels={})

    @pytest.mark.parametrize("name", ["absent.json", "../../etc/passwd", "a\0b", "\ud800", ""])
    @pytest.mark.parametrize("write", [write_tar, write_directory])
    def test_docker_names_that_lead_nowhere(self, tmp_path: Path, name: str, write: Any) -> None:
        for number, changed in enumerate(({"Config": name}, {"Layers": [name]})):
            files = docker_files(LAYERS[0])
            manifest = json.loads(files["manifest.json"])
            manifest[0] |= changed
            files["manifest.json"] = json.dumps(manifest).encode()
            assert isinstance(refused(write(tmp_path / str(number), files), tmp_path), InvalidArgument)

    def test_a_layout_directory_cannot_lead_out(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret.json"
        secret.write_bytes(Oci().complete()["index.json"])
        root = write_directory(tmp_path / "image", Oci().complete())
        (root / "index.json").unlink()
        (root / "index.json").symlink_to("../secret.json")
        assert "not a container image" in refused(root, tmp_path).message

    def test_a_missing_blob(self, tmp_path: Path) -> None:
        for number in range(4):
            files = Oci(*LAYERS).complete()
            blobs = [name for name in files if name.startswith("blobs/")]
            assert len(blobs) == 4
            del files[blobs[number]]
            error = refused(write_tar(tmp_path / "image.tar", files), tmp_path)
            assert blobs[number] in error.message
            assert error.message.endswith("is missing")

    def test_a_changed_blob(self, tmp_path: Path) -> None:
        for number in range(4):
            files = Oci(*LAYERS).complete()
            name = [name for name in files if name.startswith("blobs/")][number]
            files[name] = files[name].replace(b"upper", b"UPPER").replace(b"stays", b"STAYS").replace(b"sha", b"SHA")
            files[name] = files[name].replace(b'"amd64"', b'"amd65"')
            error = refused(write_tar(tmp_path / "image.tar", files), tmp_path)
            assert "does not match its digest" in error.message, name

    def test_a_layer_that_the_configuration_does_not_promise(self, tmp_path: Path) -> None:
        for files in (
            Oci(*LAYERS, rootfs={"diff_ids": [sha256(b"1"), sha256(b"2")]}).complete(),
            docker_files(*LAYERS, rootfs={"diff_ids": [sha256(b"1"), sha256(b"2")]}),
        ):
            error = refused(write_tar(tmp_path / "image.tar", files), tmp_path)
            assert "does not match its diff_id" in error.message

    @pytest.mark.parametrize(("magic", "name"), [(b"\xfd7zXZ\0", "xz"), (b"BZh9", "bzip2")])
    def test_compressions_that_are_not_supported_are_named(self, tmp_path: Path, magic: bytes, name: str) -> None:
        error = refused(Oci(magic + b"whatever").write(tmp_path / "image.tar"), tmp_path)
        assert isinstance(error, Unimplemented)
        assert name in error.message
        assert error.hint is not None

    @pytest.mark.parametrize("compress", [gzip.compress, zstd_compress])
    @pytest.mark.parametrize("damage", ["cut", "flip", "tail"])
    def test_a_broken_compressed_layer(self, tmp_path: Path, damage: str, compress: Callable[[bytes], bytes]) -> None:
        plain = layer(entry("a", os.urandom(5000)))
        stored = bytearray(compress(plain))
        if damage == "cut":
            del stored[2000:]
        elif damage == "flip":
            stored[1000] ^= 0xFF
        else:
            stored += b"garbage"
        oci = Oci(bytes(stored), rootfs={"diff_ids": [sha256(plain)]})
        error = refused(oci.write(tmp_path / "image.tar"), tmp_path)
        assert isinstance(error, InvalidArgument)
        assert "layer 1 of 1" in error.message

    def test_a_layer_of_zstd_may_not_ask_for_any_amount_of_memory(self, tmp_path: Path) -> None:
        path = Oci(*LAYERS, compress=lambda content: zstd_compress(content, window_log=27)).write(
            tmp_path / "image.tar"
        )
        check(path, tmp_path)
        (tmp_path / "refused").mkdir()
        oci = Oci(*LAYERS, compress=lambda content: zstd_compress(content, window_log=28))
        error = refused(oci.write(tmp_path / "image.tar"), tmp_path / "refused")
        assert isinstance(error, InvalidArgument)
        assert "too much memory" in error.message


def test_sha512_is_checked_too(tmp_path: Path) -> None:
    content = layer(entry("a", b"x"))
    right = "sha512:" + hashlib.sha512(content).hexdigest()
    for digest, good in ((right, True), (right[:-1] + ("0" if right[-1] != "0" else "1"), False)):
        path = write_tar(tmp_path / "image.tar", docker_files(content, rootfs={"diff_ids": [digest]}))
        if good:
            with open_archive(path) as image:
                unpack(image, tmp_path / "good")
        else:
            refused(path, tmp_path)


def test_what_tarfile_writes_in_every_format_is_read(tmp_path: Path) -> None:
    long = "d" * 90 + "/" + "e" * 150
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        content = layer(entry(long, b"x"), symlink("l", "t" * 300), entry("ü", b"y"), form=form)
        target = tmp_path / f"target{form}"
        with open_archive(Oci(content).write(tmp_path / "image.tar")) as image:
            unpack(image, target)
        assert (target / long).read_bytes() == b"x"
        assert os.readlink(target / "l") == "t" * 300
        assert (target / "ü").read_bytes() == b"y"


def test_streams_of_one_archive_do_not_disturb_each_other(tmp_path: Path) -> None:
    with open_archive(Oci(*LAYERS).write(tmp_path / "image.tar")) as image:
        first, second = image.layers[0].open(), image.layers[1].open()
        with first, second:
            parts: list[list[bytes]] = [[], []]
            for _ in range(1000):
                parts[0].append(first.read(100))
                parts[1].append(second.read(37))
        assert [b"".join(part) for part in parts] == list(LAYERS)
        assert isinstance(first, io.BufferedReader)
