"""containerd's overlayfs snapshots with their layers as disks: the same files, what is written where it belongs."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kata.errors import KataError
from tests.support.containerd import RUNTIME, PrivateContainerd, unique_id
from tests.support.images import busybox_rootfs, layer_of
from tests.unit.runtime.images.builder import Oci, directory, entry, layer

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("nothing_left_by_this"), pytest.mark.timeout(240)]

IMAGE = "docker.io/library/layers:1"


@pytest.fixture(scope="module")
def image(containerd: PrivateContainerd, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two layers: busybox, and one that removes a file and replaces a directory."""
    place = tmp_path_factory.mktemp("layers")
    (place / "rootfs").mkdir()
    busybox_rootfs(place / "rootfs")
    (place / "rootfs/root/removed").write_text("no")
    (place / "rootfs/var/file").write_text("no")
    upper = layer(
        directory("root", mode=0o700),
        entry("root/.wh.removed", b""),
        entry("root/a", b"above\n", uid=12, mode=0o640),
        directory("var"),
        entry("var/.wh..wh..opq", b""),
    )
    oci = Oci(layer_of(place / "rootfs"), upper, config={"Cmd": ["sh"], "Env": ["PATH=/bin"]})
    oci.descriptors[0]["annotations"] = {"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": "1"}
    assert containerd.import_image(oci.write(place / "image.tar")) == [IMAGE]
    return IMAGE


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], list[str]]:
    def options(upper: str) -> list[str]:
        """Options of `ctr run` for a layer cache of this test."""
        configuration = tmp_path / f"{upper}.toml"
        configuration.write_text(
            "[hypervisor.qemu]\ndefault_memory = 512\n[runtime]\nrootfs_layers = 'disks'\n"
            f"rootfs_upper = '{upper}'\nlayer_cache_path = '{tmp_path}/layers'\n"
        )
        return ["--runtime", RUNTIME, "--runtime-config-path", str(configuration)]

    return options


SCRIPT = """
    mount | grep -o '^overlay on / .*lowerdir=/run/kata-containers/sandbox/storage' | cut -d ' ' -f 1-3
    ls /root /var; stat -c '%a %u' / /root/a; cat /root/a
    echo more >>/root/a; echo new >/root/new; rm /etc/group; mkdir /var/d; mv /root/new /var/d/new; cat /var/d/new
    mkfifo /f; ln -s x /l; ls /etc/group 2>&1 | grep -c 'No such'
"""
SAID = ["overlay on /", "/root:", "a", "", "/var:", "755 0", "640 12", "above", "new", "1"]


def test_what_is_written_on_the_host(
    containerd: PrivateContainerd, image: str, configured: Callable[[str], list[str]], tmp_path: Path
) -> None:
    container = unique_id("layers")
    said = containerd.ctr("run", *configured("host"), image, container, "sh", "-c", SCRIPT, timeout=120)
    try:
        assert said.stdout.splitlines() == SAID
        upper = containerd.upper(container)
        assert (upper / "root/a").read_text() == "above\nmore\n"
        assert (upper / "root/a").stat().st_uid == 12
        gone = (upper / "etc/group").lstat()
        assert (stat.S_ISCHR(gone.st_mode), gone.st_rdev) == (True, 0), "a whiteout, as the host's overlayfs has it"
        assert (upper / "var/d/new").read_text() == "new\n"
        # A second container finds the layers made.
        made = {path.name: path.stat().st_ino for path in (tmp_path / "layers").iterdir()}
        assert len(made) == 2
        assert {name.partition("-")[0] for name in made} == {"directory"}
        # The overlay cannot mark directories there; see docs/limitations.md.
        script = "cat /root/a; rm -r /usr 2>&1 | grep -o 'Input/output error'"
        again = containerd.ctr("run", "--rm", *configured("host"), image, unique_id("layers"), "sh", "-c", script)
        assert again.stdout == "above\nInput/output error\n"
        assert {path.name: path.stat().st_ino for path in (tmp_path / "layers").iterdir()} == made
        # The same container again has what it has written.
        again = containerd.ctr("task", "start", container, timeout=120)
        assert again.stdout.splitlines() == [*SAID[:5], "d", *SAID[5:8], "more", *SAID[8:]]
    finally:
        containerd.ctr("containers", "rm", container)


@pytest.mark.long
def test_the_root_is_shared_where_it_is_written_over_virtio_fs(
    containerd: PrivateContainerd, image: str, configured: Callable[[str], list[str]], tmp_path: Path
) -> None:
    """Linux has no overlay that is written to over virtio-fs, which a volume makes the sandbox have."""
    container = unique_id("layers")
    (tmp_path / "volume").mkdir()
    volume = ("--mount", f"type=bind,src={tmp_path}/volume,dst=/data,options=rbind:rw")
    said = containerd.ctr("run", *configured("host"), *volume, image, container, "sh", "-c", SCRIPT, timeout=120)
    try:
        assert said.stdout.splitlines() == SAID[1:]
        assert (containerd.upper(container) / "root/a").read_text() == "above\nmore\n"
        assert f"container {container}: its root is shared" in containerd.log_text()
    finally:
        containerd.ctr("containers", "rm", container)


@pytest.mark.parametrize("upper", ["disk", "memory"])
def test_what_is_written_and_not_kept(
    containerd: PrivateContainerd, image: str, configured: Callable[[str], list[str]], upper: str
) -> None:
    container = unique_id("layers")
    said = containerd.ctr("run", *configured(upper), image, container, "sh", "-c", SCRIPT, timeout=120)
    try:
        assert said.stdout.splitlines() == SAID
        assert os.listdir(containerd.upper(container)) == []
    finally:
        containerd.ctr("containers", "rm", container)


def test_a_layer_that_was_changed_on_the_host_is_made_anew(
    containerd: PrivateContainerd, image: str, configured: Callable[[str], list[str]], tmp_path: Path
) -> None:
    container = unique_id("layers")
    options = configured("memory")
    containerd.ctr("run", *options, image, container, "true", timeout=120)
    try:
        mounts = containerd.ctr("snapshots", "mounts", "/nowhere", container).stdout
        found = re.search(r"lowerdir=([^:,\s]+)", mounts)
        assert found
        file = Path(found[1], "root/a")
        info = file.stat()
        file.write_text("ABOVE\n")
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
        try:
            again = containerd.ctr("run", "--rm", *options, image, unique_id("layers"), "cat", "/root/a")
            assert again.stdout == "ABOVE\n"
        finally:
            file.write_text("above\n")
        assert len(os.listdir(tmp_path / "layers")) == 3
    finally:
        containerd.ctr("containers", "rm", container)


def test_a_cache_that_cannot_be_had_is_told(
    containerd: PrivateContainerd, image: str, configured: Callable[[str], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "layers").touch()
    with pytest.raises(KataError, match="cannot keep layers in"):
        containerd.ctr("run", "--rm", *configured("memory"), image, unique_id("layers"), "true", timeout=120)
