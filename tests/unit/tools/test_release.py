"""What of a release is decided without building one; `make dist` and `make release-check` are the whole."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from kata.version import VERSION
from tools.release import __main__ as release
from tools.release import check, deb, lock, sbom
from tools.release import tree as trees
from tools.release.lock import Pinned
from tools.release.tree import File, Link

DATE = 1_700_000_000
A, B = "a" * 64, "b" * 64


def wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


class TestLock:
    def test_is_what_is_asked_for(self) -> None:
        """Who changes a dependency in pyproject.toml has to run `make lock`."""
        pinned = lock.parse(lock.REQUIREMENTS.read_text())
        assert check.unlocked(lock.dependencies(), pinned) == []
        assert check.unlocked(["h11>=99", "nothing-of-the-kind"], pinned) == ["h11>=99", "nothing-of-the-kind"]
        assert [one.name for one in lock.parse(lock.BUILD.read_text())] == ["setuptools"]

    def test_is_read_as_it_was_written(self) -> None:
        pinned = [Pinned("b", "2.0", (A,)), Pinned("a", "1", (A, B))]
        text = lock.dump(pinned, "For a test.")
        assert text.startswith("# For a test.")
        assert lock.parse(text) == [pinned[1], pinned[0]]
        with pytest.raises(ValueError, match="not a line"):
            lock.parse("a>=1\n")

    def test_one_version_for_all_pythons(self) -> None:
        def report(version: str, digest: str) -> dict[str, object]:
            info = {"archive_info": {"hashes": {"sha256": digest}}}
            return {"install": [{"metadata": {"name": "Some.Thing", "version": version}, "download_info": info}]}

        assert lock.merge([report("1", B), report("1", A)]) == [Pinned("some-thing", "1", (A, B))]
        with pytest.raises(ValueError, match="some-thing is 1 for one Python and 2 for another"):
            lock.merge([report("1", A), report("2", A)])


class TestTree:
    def test_wheels_for_two_pythons_lie_in_one_directory(self, tmp_path: Path) -> None:
        first = {
            "p/__init__.py": "",
            "p/x.cpython-311.so": "1",
            "p-1.dist-info/METADATA": "m",
            "p-1.dist-info/RECORD": "",
        }
        second = {"p/__init__.py": "", "p/x.cpython-313.so": "2", "p-1.dist-info/WHEEL": "w"}
        more = {"q-1.data/purelib/q.py": "q", "q-1.data/scripts/tool": "t"}
        paths = [wheel(tmp_path / f"{n}.whl", files) for n, files in enumerate((first, second, more))]
        tree = trees.wheels(paths)
        names = {name.removeprefix("lib/pykata/") for name in tree}
        assert names == {
            *("p/__init__.py", "p/x.cpython-311.so", "p/x.cpython-313.so", "q.py"),
            *("p-1.dist-info/METADATA", "p-1.dist-info/WHEEL"),
        }
        wheel(tmp_path / "3.whl", {"p/__init__.py": "another"})
        with pytest.raises(ValueError, match=r"3\.whl has another p/__init__\.py"):
            trees.wheels([*paths, tmp_path / "3.whl"])
        wheel(tmp_path / "4.whl", {"q-1.data/odd/q.py": ""})
        with pytest.raises(ValueError, match="not known"):
            trees.wheels([tmp_path / "4.whl"])

    def test_commands_find_their_library_wherever_they_are(self, tmp_path: Path) -> None:
        tree = trees.commands({"tool": "part.of_it:main"})
        tree["lib/pykata/part/__init__.py"] = File(b"")
        tree["lib/pykata/part/of_it.py"] = File(b"import sys\ndef main(): print(sys.argv[1], __file__)\n")
        (tmp_path / "first").mkdir()
        trees.write(tree, tmp_path / "first")
        moved = (tmp_path / "first").rename(tmp_path / "moved")
        link = tmp_path / "link"
        link.symlink_to(moved / "bin/tool")
        for path in (moved / "bin/tool", link):
            done = subprocess.run([path, "word"], capture_output=True, text=True, check=True, env={}, timeout=60)
            assert done.stdout == f"word {moved}/lib/pykata/part/of_it.py\n"

    @pytest.mark.parametrize(
        ("left", "words"), [(None, "No module named 'part.of_it'"), (b"def main(", "'(' was never closed")]
    )
    def test_half_an_installation_says_so(self, tmp_path: Path, left: bytes | None, words: str) -> None:
        """The unpacking was interrupted before a module, or in it."""
        tree = trees.commands({"tool": "part.of_it:main"})
        tree["lib/pykata/part/__init__.py"] = File(b"")
        if left:
            tree["lib/pykata/part/of_it.py"] = File(left)
        trees.write(tree, tmp_path)
        done = subprocess.run([tmp_path / "bin/tool"], capture_output=True, text=True, check=False, env={}, timeout=60)
        assert done.returncode == 1
        first, second = done.stderr.splitlines()
        assert first.startswith(f"tool: {words}")
        assert second == "hint: a part of this installation is missing; install it again"

    def test_an_archive_has_the_same_bytes_from_two_directories(self, tmp_path: Path) -> None:
        archives = []
        for number, umask in enumerate((0o022, 0o077)):
            directory = tmp_path / f"d{number}"
            before = os.umask(umask)
            try:
                directory.mkdir()
                (directory / "f").write_text("content")
            finally:
                os.umask(before)
            tree: trees.Tree = {"bin/x": File(directory / "f", 0o755), "bin/a": File(b"1"), "images/current": Link("1")}
            trees.write_archive(trees.under("opt/kata", tree), directory / "a.tar.xz", DATE)
            archives.append((directory / "a.tar.xz").read_bytes())
        assert archives[0] == archives[1]
        with tarfile.open(fileobj=io.BytesIO(archives[0])) as archive:
            found = {member.name: (member.mode, member.mtime, member.uid) for member in archive.getmembers()}
        assert found["opt/kata/bin/x"] == (0o755, DATE, 0)
        assert found["opt/kata/bin"] == (0o755, DATE, 0)
        assert list(found) == sorted(found, key=lambda name: name.split("/"))

    def test_a_source_archive_is_made_the_same(self) -> None:
        made = []
        for owner, date, names in ((0, 1, "ab"), (1000, 2, "ba")):
            plain = io.BytesIO()
            with tarfile.open(fileobj=plain, mode="w:gz") as archive:
                for name in names:
                    member = tarfile.TarInfo(name)
                    member.uid, member.mtime, member.size, member.mode = owner, date, 1, 0o600 + owner % 7
                    archive.addfile(member, io.BytesIO(name.encode()))
            made.append(release.same_each_time(plain.getvalue(), DATE))
        assert made[0] == made[1]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
class TestPackages:
    def test_it_is_what_was_meant_and_the_same_twice(self, tmp_path: Path) -> None:
        installed = trees.commands({"kata": "kata.cli.main:main"})
        installed["share/zsh/site-functions/_kata"] = File(b"#compdef kata\n")
        installed["share/man/man1/kata.1"] = File(b".TH KATA 1\n")
        for number, umask in enumerate((0o022, 0o077)):
            out = tmp_path / str(number)
            out.mkdir()
            before = os.umask(umask)
            try:
                deb.build(deb.runtime(deb.zipped_pages(installed), DATE), out, DATE)
            finally:
                os.umask(before)
        path, again = (tmp_path / number / f"pykata_{VERSION}_amd64.deb" for number in "01")
        assert path.read_bytes() == again.read_bytes()
        assert os.listdir(path.parent) == [path.name]
        listed = subprocess.run(["dpkg-deb", "--contents", path], capture_output=True, text=True, check=True).stdout
        owners = {line.split()[1] for line in listed.splitlines()}
        names = {line.split()[5] for line in listed.splitlines()}
        assert owners == {"root/root"}
        assert {"./usr/bin/kata", "./usr/share/man/man1/kata.1.gz", "./usr/share/zsh/vendor-completions/_kata"} <= names
        subprocess.run(["dpkg-deb", "--control", path, tmp_path / "control"], check=True)
        control = (tmp_path / "control/control").read_text()
        assert f"\nVersion: {VERSION}\n" in control
        assert re.search(r"^Depends: python3 \(>= 3\.11\), python3 \(<< 3\.14\), qemu", control, re.MULTILINE)
        subprocess.run(["dpkg-deb", "--extract", path, tmp_path / "root"], check=True)
        subprocess.run(
            ["md5sum", "--quiet", "--check", tmp_path / "control/md5sums"], cwd=tmp_path / "root", check=True
        )

    def test_maintainer_scripts_are_shell(self) -> None:
        for kind, text in deb.runtime({}, DATE).scripts.items():
            subprocess.run(["sh", "-n"], input=text, text=True, check=True)
            assert text.startswith("#!/bin/sh\nset -e\n"), kind

    def test_both_hosts_pythons_are_allowed(self) -> None:
        classifiers = tomllib.loads((lock.PROJECT / "pyproject.toml").read_text())["project"]["classifiers"]
        minor = sorted(int(found[1]) for one in classifiers if (found := re.search(r"Python :: 3\.(\d+)", one)))
        assert tuple(f"3.{number}" for number in minor) == lock.PYTHONS
        depends = deb.runtime({}, DATE).fields["Depends"]
        assert f"python3 (>= 3.{minor[0]}), python3 (<< 3.{minor[-1] + 1})" in depends


def test_the_bill_of_materials() -> None:
    packages = [
        {"name": "libc6", "version": "2.41-12", "sha256": A, "licenses": ["LGPL-2.1+", "GPL-2"]},
        {"name": "zlib1g", "version": "1:1.3", "sha256": B, "licenses": []},
    ]
    manifest = {"version": "0.1.0-abc", "packages": packages}
    text = sbom.make([Pinned("h11", "0.16.0", (A,))], manifest, "trixie", DATE)
    assert text == sbom.make([Pinned("h11", "0.16.0", (A,))], manifest, "trixie", DATE)
    document = json.loads(text)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["timestamp"].startswith("2023-11-14")
    found = {one["purl"]: one for one in document["components"]}
    assert set(found) == {
        "pkg:pypi/h11@0.16.0",
        "pkg:deb/debian/libc6@2.41-12?arch=amd64&distro=trixie",
        "pkg:deb/debian/zlib1g@1:1.3?arch=amd64&distro=trixie",
    }
    libc = found["pkg:deb/debian/libc6@2.41-12?arch=amd64&distro=trixie"]
    assert libc["hashes"] == [{"alg": "SHA-256", "content": A}]
    assert [one["license"]["name"] for one in libc["licenses"]] == ["GPL-2", "LGPL-2.1+"]


class TestCheck:
    @pytest.mark.parametrize(
        ("text", "is_right"),
        [
            (f"# Changelog\n\n## {VERSION} – 2026-12-01\n\n- all\n\n## 0.0.1 – unreleased\n", True),
            (f"## {VERSION} – unreleased\n", False),
            ("## 99.0 – 2026-12-01\n", False),
            ("nothing", False),
        ],
    )
    def test_the_changelog_has_the_version_and_a_date(self, text: str, is_right: bool) -> None:
        assert check.changelog(text).is_right is is_right

    def test_files_and_digests(self, tmp_path: Path) -> None:
        def found() -> dict[str, bool]:
            return {row.name: row.is_right for row in check.files(tmp_path)}

        assert found() == {"files": False}
        for name in check.expected():
            (tmp_path / name).write_bytes(name.encode())
        wheel(
            tmp_path / f"pykata-{VERSION}-py3-none-any.whl",
            {f"pykata-{VERSION}.dist-info/METADATA": f"Metadata-Version: 2.4\nName: pykata\nVersion: {VERSION}\n"},
        )
        (tmp_path / "SHA256SUMS").write_text(release.sums(tmp_path))
        assert found() == {"files": True, "digests": True, "archive": True, "wheel": True, "signature": False}
        (tmp_path / "SHA256SUMS.asc").touch()
        assert all(found().values())
        (tmp_path / release.BILL).write_text("changed")
        (tmp_path / "stray").touch()
        assert found() == {"files": False, "digests": False, "archive": True, "wheel": True, "signature": True}
