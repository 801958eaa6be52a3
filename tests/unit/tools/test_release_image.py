"""The container image of a release: what is taken of packages, and an archive that our own reader takes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from kata.osbuilder.packages import Package
from kata.runtime.images.archive import open_archive
from kata.version import VERSION
from tools.release import image, lock, sbom
from tools.release.tree import File, Link, Tree

DATE = 1_700_000_000

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


def make_deb(directory: Path, name: str, files: dict[str, str]) -> Path:
    root = directory / name
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: of a test\n"
    )
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    command = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(directory / f"{name}.deb")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return directory / f"{name}.deb"


def test_what_is_taken_of_packages(tmp_path: Path) -> None:
    files = {
        "bin/setpriv": "moved",
        "usr/bin/unshare": "program",
        "usr/bin/other": "not needed",
        "usr/lib/python3.13/os.py": "library",
        "usr/lib/python3.13/test/a.py": "left out",
        "usr/share/doc/first/copyright": "license",
        "usr/share/doc/first/README": "not needed",
        "etc/first.conf": "not needed",
    }
    first = make_deb(tmp_path, "first", files)
    tree = image.root([first])
    ours = {"bin", "lib", "lib64", "sbin", "usr/bin/kata-deploy", "etc/passwd", "etc/group"}
    taken = {"usr/bin/setpriv", "usr/bin/unshare", "usr/lib/python3.13/os.py", "usr/share/doc/first/copyright"}
    assert set(tree) == ours | taken
    assert tree["usr/bin/setpriv"] == File(b"moved")
    assert tree["bin"] == Link("usr/bin")
    second = make_deb(tmp_path, "second", {"usr/lib/python3.13/os.py": "another"})
    with pytest.raises(ValueError, match=r"second\.deb has another usr/lib/python3\.13/os\.py"):
        image.root([first, second])


def test_the_archive_is_an_image_and_the_same_twice(tmp_path: Path) -> None:
    layers: list[Tree] = [
        {"usr/bin/kata-deploy": File(b"#!", 0o755), "bin": Link("usr/bin")},
        {"opt/kata/bin/kata": File(b"kata", 0o755)},
    ]
    for number, umask in enumerate((0o022, 0o077)):
        before = os.umask(umask)
        try:
            image.write(layers, tmp_path / str(number), DATE)
        finally:
            os.umask(before)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    with open_archive(tmp_path / "0") as read:
        assert read.config.entrypoint == ("/usr/bin/kata-deploy",)
        assert len(read.layers) == 2


def test_the_chart_names_it() -> None:
    values = yaml.safe_load((lock.PROJECT / "deploy/helm/kata/values.yaml").read_text())
    assert values["image"]["repository"] == image.REPOSITORY
    assert f"/{image.PREFIX}" == values["prefix"]
    assert VERSION in (lock.PROJECT / "deploy/helm/kata/Chart.yaml").read_text()


def test_its_packages_are_in_the_bill_of_materials() -> None:
    known = Package("libc6", "2.41", "libc6.deb", 1, "a" * 64)
    new = Package("libssl3t64", "3.5", "libssl3t64.deb", 1, "b" * 64)
    manifest = {
        "version": "1",
        "packages": [{"name": "libc6", "version": "2.41", "sha256": "a" * 64, "licenses": ["X"]}],
    }
    found = sbom.with_packages(manifest, [known, new])["packages"]
    assert [(package["name"], package.get("licenses")) for package in found] == [("libc6", ["X"]), ("libssl3t64", None)]
    assert "libssl3t64@3.5" in sbom.make([], sbom.with_packages(manifest, [new]), "trixie", DATE)
