"""Records of direct volumes: written, found, refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kata.errors import InvalidArgument, NotFound
from kata.runtime.storage import direct_volume
from kata.runtime.storage.direct_volume import DirectVolume
from kata.runtime.storage.disk_mount import DiskMount

RECORD = {"volume-type": "block", "device": "/dev/sdx", "fstype": "ext4"}


def record(**changes: Any) -> str:
    return json.dumps({**RECORD, **changes})


def test_what_is_added_is_found_until_it_is_removed(tmp_path: Path) -> None:
    root = str(tmp_path / "records")
    volume = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/data/mount"
    point = direct_volume.guest_point(volume)
    assert direct_volume.find(volume, root) is None
    metadata = {"fsGroup": "1234", "fsGroupChangePolicy": "OnRootMismatch"}
    direct_volume.add(volume, record(options=["noatime"], metadata=metadata), root)
    assert direct_volume.find(f"{volume}/", root) == DirectVolume(
        "/dev/sdx", DiskMount(point, "ext4", ("noatime",), 1234, on_root_mismatch=True)
    )
    assert os.stat(root).st_mode & 0o077 == 0
    # The name that Kata's drivers give it.
    assert (
        tmp_path / "records/L3Zhci9saWIva3ViZWxldC9wb2RzLzEvdm9sdW1lcy9rdWJlcm5ldGVzLmlvfmNzaS9kYXRhL21vdW50"
    ).is_dir()
    direct_volume.add(volume, record(fstype="xfs"), root)
    assert direct_volume.find(volume, root) == DirectVolume("/dev/sdx", DiskMount(point, "xfs"))
    direct_volume.remove(volume, root)
    assert direct_volume.find(volume, root) is None
    with pytest.raises(NotFound, match=r"no direct volume is recorded for /var/lib/kubelet"):
        direct_volume.remove(volume, root)


def test_who_uses_it(tmp_path: Path) -> None:
    root = str(tmp_path)
    with pytest.raises(NotFound):
        direct_volume.users("/data", root)
    direct_volume.add("/data", record(), root)
    assert direct_volume.users("/data", root) == []
    Path(direct_volume.user_file("/data", "pod-1", root)).touch()
    assert direct_volume.users("/data", root) == ["pod-1"]
    with pytest.raises(InvalidArgument):
        direct_volume.user_file("/data", "../pod", root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "volume-type '' is not supported"),
        (record(device="sdx"), "device 'sdx' is not an absolute path"),
        (record(device="/dev/\0"), "is not an absolute path"),
        (record(fstype="ntfs"), "file system 'ntfs' is not supported"),
        (record(options="ro"), "options are not a list"),
        (record(options=[1]), "options are not a list"),
        (record(metadata="x"), "metadata is not a JSON object"),
        (record(metadata={"encryptionKey": "k"}), "metadata encryptionKey is not supported"),
        (record(metadata={"a\nb": "k"}), r"metadata 'a\\nb' is not supported"),
        (record(metadata={"fsGroup": "-1"}), "invalid fsGroup '-1'"),
        (record(metadata={"fsGroup": "4294967295"}), "invalid fsGroup"),
        (record(metadata={"fsGroup": "9" * 5000}), "invalid fsGroup"),
        (record(metadata={"fsGroup": "1", "fsGroupChangePolicy": "Never"}), "invalid fsGroupChangePolicy"),
    ],
)
def test_a_bad_record_is_refused_and_changes_nothing(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        direct_volume.add("/data", text, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "message"), [("data", "absolute"), ("/a\0b", "absolute"), ("/" + "a" * 200, "191 bytes")]
)
def test_a_bad_path_is_refused(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        direct_volume.add(path, record(), str(tmp_path))
    assert direct_volume.find(path, str(tmp_path)) is None


def test_a_broken_record_is_an_error_not_a_shared_directory(tmp_path: Path) -> None:
    direct_volume.add("/data", record(), str(tmp_path))
    (path,) = tmp_path.glob("*/mountInfo.json")
    path.write_text("{")
    with pytest.raises(InvalidArgument, match="not JSON"):
        direct_volume.find("/data", str(tmp_path))
    path.write_bytes(b" " * 70_000)
    with pytest.raises(InvalidArgument, match="larger than 65536 bytes"):
        direct_volume.find("/data", str(tmp_path))
