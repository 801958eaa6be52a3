"""An image for real work: a Debian with apt, git, pip and Python, and what they work on, made here and always the same.

The Debian is made by mmdebstrap and kept for the next run, as are packages for the tests' images.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

from kata.osbuilder import suite
from kata.osbuilder.store import lock
from tests.unit.runtime.images.builder import Oci

NAME = "docker.io/library/work:latest"
#: Where the image has what is worked on.
PLACE = "/srv/work"

PACKAGES, FILES_OF_A_PACKAGE = 3, 100
FILES_OF_THE_REPOSITORY = 3000
WHEELS, MODULES_OF_A_WHEEL = 5, 60
FILES_OF_THE_ARCHIVE = 1000
MODULES_OF_THE_PROGRAM = 300

_INCLUDED = "git,python3,python3-pip"
#: Where it is kept, beside the packages for the tests' images.
_CACHE = Path("/var/cache/kata-test")
_WEEK_S = 7 * 24 * 3600.0
_TIMEOUT_S = 600.0


def work_archive(directory: Path) -> Path:
    """Write the image as an archive; return its path.

    Args:
        directory: for the archive, and what it is made of.

    Raises:
        subprocess.SubprocessError: mmdebstrap, git or dpkg-deb failed.
        OSError: one of them is not installed, or the disk is full.
    """
    place = directory / "work"
    _write_inputs(place)
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.add(place, PLACE.lstrip("/"), filter=_of_root)
    config = {"Cmd": ["sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
    oci = Oci(_debian().read_bytes(), layer.getvalue(), config=config)
    oci.descriptors[0]["annotations"] = {
        "io.containerd.image.name": NAME,
        "org.opencontainers.image.ref.name": NAME.rpartition(":")[2],
    }
    shutil.rmtree(place)
    return oci.write(directory / "work.tar")


def _debian() -> Path:
    """A root of the guest's release as a tar archive, made anew when it is a week old."""
    release = suite.guest_suite()
    path = _CACHE / f"work-{release}.tar"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with lock(_CACHE, timeout=_TIMEOUT_S):
        if not path.exists() or time.time() - path.stat().st_mtime > _WEEK_S:
            with tempfile.NamedTemporaryFile(dir=_CACHE, prefix=".work-") as staging:
                sources = suite.sources(release, os.environ.get("KATA_MIRROR") or suite.MIRROR)
                command = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={_INCLUDED}", "--format=tar"]
                command += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]
                subprocess.run(
                    [*command, release, staging.name, "-"],
                    input=sources,
                    text=True,
                    check=True,
                    timeout=_TIMEOUT_S,
                )
                shutil.copyfile(staging.name, path)
    return path


def _of_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def _write_inputs(place: Path) -> None:
    for name in ("mirror", "wheels"):
        (place / name).mkdir(parents=True)
    _write_mirror(place / "mirror", place.with_name("package"))
    _write_repository(place / "repository.git")
    for number in range(WHEELS):
        _write_wheel(place / "wheels", f"work{number}")
    with tarfile.open(place / "files.tar", "w") as archive:
        for number in range(FILES_OF_THE_ARCHIVE):
            info = tarfile.TarInfo(f"files/{number % 20}/{number}")
            # Whoever unpacks it as root gives the files to them.
            info.uid, info.gid, info.size = 1000 + number % 3, 1000, 2000
            archive.addfile(info, io.BytesIO(_text(number, 2000)))
    modules = place / "program/modules"
    modules.mkdir(parents=True)
    (modules / "__init__.py").touch()
    for number in range(MODULES_OF_THE_PROGRAM):
        (modules / f"m{number}.py").write_bytes(_module(number))
    imports = "\n".join(f"import modules.m{number}" for number in range(MODULES_OF_THE_PROGRAM))
    (place / "program/program.py").write_text(imports + "\n", encoding="ascii")


def _text(seed: int, size: int) -> bytes:
    """Some text, which compresses about as well as source code."""
    words = [hashlib.sha256(f"{seed} {number % 40}".encode()).hexdigest()[:8] for number in range(size // 9 + 1)]
    return " ".join(words).encode()[:size]


def _module(number: int) -> bytes:
    lines = [f'"""Module {number}."""', ""]
    for function in range(10):
        lines += [f"def function_{function}(value: int) -> int:", f"    return value + {number + function}", "", ""]
    return "\n".join(lines).encode()


def _write_mirror(mirror: Path, scratch: Path) -> None:
    """Packages with files to unpack, and the list of them that apt reads (deb-src-control(5), `Packages`)."""
    entries = []
    for number in range(PACKAGES):
        name = f"work-{number}"
        tree = scratch / name
        (tree / "DEBIAN").mkdir(parents=True)
        control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: none\nDescription: work\n"
        (tree / "DEBIAN/control").write_text(control, encoding="ascii")
        for file in range(FILES_OF_A_PACKAGE):
            path = tree / f"usr/share/{name}/{file % 10}/{file}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_text(file, 3000))
        package = mirror / f"{name}.deb"
        command = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(package)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        content = package.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        entries.append(f"{control}Filename: ./{package.name}\nSize: {len(content)}\nSHA256: {digest}\n")
    (mirror / "Packages").write_text("\n".join(entries), encoding="ascii")
    shutil.rmtree(scratch)


def _write_repository(repository: Path) -> None:
    """A bare repository of one commit, written as git-fast-import(1) reads it."""
    who = "committer Nobody <nobody@localhost> 1700000000 +0000"
    parts = [f"commit refs/heads/main\n{who}\ndata 4\nwork\n".encode()]
    for number in range(FILES_OF_THE_REPOSITORY):
        content = _text(number, 1000)
        parts.append(f"M 644 inline {number % 60}/{number}\ndata {len(content)}\n".encode() + content + b"\n")
    git = ["git", "-C", str(repository)]
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(repository)], check=True)
    subprocess.run([*git, "fast-import", "--quiet"], input=b"".join(parts), check=True, timeout=60)


def _write_wheel(directory: Path, name: str) -> None:
    """A wheel of pure Python (the binary distribution format of the PyPA)."""
    info = f"{name}-1.0.dist-info"
    files = {f"{name}/m{number}.py": _module(number) for number in range(MODULES_OF_A_WHEEL)}
    files |= {
        f"{name}/__init__.py": b"",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: work\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, content in {**files, f"{info}/RECORD": record.encode()}.items():
            wheel.writestr(path, content)
