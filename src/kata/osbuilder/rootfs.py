"""The guest's root directory: packages unpacked and trimmed, made to work read-only, then an erofs image.

No package script runs and no package manager is left: what they would do for this handful of packages is done here,
in the same order every time. The root is read-only in the guest; what must change there lives in /run and /tmp.
"""

from __future__ import annotations

import lzma
import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from kata.agent.config import OF_IMAGE
from kata.architecture import HOST, Architecture
from kata.command import run
from kata.errors import FailedPrecondition, Internal, InvalidArgument
from kata.osbuilder.commands import pipe, run_in
from kata.osbuilder.modules import ModuleTree
from kata.osbuilder.recipe import Recipe, agent_parameters

#: For one tool; all of them take a few seconds on an idle host.
_TOOL_TIMEOUT_S = 300.0

# Debian has one directory for programs and libraries; packages may still name the old ones.
_MERGED = ("bin", "lib", "lib64", "sbin")

# Never unpacked: read by people, by package tools, by compilers, or for C programs in other languages.
_EXCLUDED = (
    *("./usr/share/*", "./var/*", "./etc/init.d*", "./etc/cron*", "./usr/sbin/iconvconfig"),
    *(f"./usr/lib/*-linux-gnu/{name}" for name in ("gconv*", "audit*", "*.a", "libssl.so*", "libmvec.so*")),
    *(f"./usr/lib/*-linux-gnu/{name}" for name in ("ossl-modules*", "engines-*")),
    "./usr/lib/python3/dist-packages/*.egg-info*",
)

# Of a recipe's packages: only what people read, and what the state of a machine is.
_UNREAD = (
    *(f"./usr/share/{name}" for name in ("doc", "doc-base", "info", "lintian", "locale", "man")),
    *("./usr/share/bash-completion", "./var/*", "./etc/init.d*", "./etc/cron*"),
)

# Parts of Python's standard library that no agent needs: tests, tools for developers, other encodings than Unicode's,
# and what loads a library that is not there. Without _ssl and _hashlib, asyncio and hashlib do without OpenSSL, which
# saves every start its loading.
_STDLIB_UNNEEDED = (
    *("test", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "distutils", "pydoc_data", "venv", "wsgiref"),
    *("dbm", "curses", "sqlite3", "xmlrpc", "unittest", "__phello__", "pydoc.py", "turtle.py", "ssl.py", "doctest.py"),
    *("config-3*", "LICENSE.txt", "_pyio.py", "_pydecimal.py"),
    *("encodings/cp*", "encodings/iso*", "encodings/mac_*", "encodings/koi8_*", "encodings/euc_*", "encodings/big5*"),
    *("encodings/shift_jis*", "encodings/gb*", "encodings/ptcp*", "encodings/tis_620*", "encodings/johab*"),
    *("lib-dynload/_codecs_*", "lib-dynload/_ssl.*", "lib-dynload/_hashlib.*", "lib-dynload/_sqlite3.*"),
    *("lib-dynload/_dbm.*", "lib-dynload/nis.*", "lib-dynload/readline.*", "lib-dynload/_curses*"),
    *("lib-dynload/_uuid.*", "lib-dynload/_test*", "lib-dynload/_ctypes_test.*", "lib-dynload/_xx*", "lib-dynload/xx*"),
    *("lib-dynload/audioop.*", "lib-dynload/ossaudiodev.*"),
)

_DIRECTORIES = (
    *("boot", "dev", "etc", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp"),
    *("usr/local/bin", "usr/share/oci/hooks", "var/cache", "var/lib", "var/log", "var/spool"),
)

# Empty files are targets for bind mounts: the sandbox's own ones are put over them.
_FILES = {
    "etc/group": "root:x:0:\ntty:x:5:\ndisk:x:6:\nnogroup:x:65534:\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/hostname": "",
    "etc/machine-id": "",
    "etc/resolv.conf": "",
}

_SYMLINKS = {
    "etc/mtab": "../proc/self/mounts",
    "var/lock": "../run/lock",
    "var/run": "../run",
    "var/tmp": "../tmp",
}

# Everything that the agent may import, found out by importing it: a trimmed library that is needed after all, or a
# shared library that is not there, stops the build instead of a guest.
_CHECK = """
import sys
sys.path += ["/usr/lib/kata", "/usr/lib/python3/dist-packages"]
import importlib, os, pkgutil
import _lzma
for extension in sorted(os.listdir(os.path.dirname(_lzma.__file__))):
    importlib.import_module(extension.partition(".")[0])
import asyncio, google.protobuf.json_format, google.protobuf.pyext.cpp_message
import kata
for module in pkgutil.walk_packages(kata.__path__, "kata."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
"""

# Of another root: what the guest mounts something over, and another kernel; and what would be loaded into the agent's
# programs, which the build runs as root to check them: none of the other's code is.
_NOT_TAKEN = (
    *("boot", "dev", "proc", "run", "sys", "tmp", "lib/modules", "usr/lib/modules"),
    *(
        "etc/ld.so.*",
        "*/glibc-hwcaps",
        "usr/lib/python3",
        "lib/*-linux-gnu/gconv",
        "usr/lib/*-linux-gnu/gconv",
    ),
)

# The kernel's modules, below the root.
MODULES = Path("usr/lib/modules")

# Bytes 4 to 8 of a compiled module: by hash, and not to be compared (PEP 552).
_UNCHECKED = (0b01).to_bytes(4, "little")


def unpack(trimmed: Sequence[Path], whole: Sequence[Path], root: Path) -> None:
    """Unpack packages into a new root directory.

    Args:
        trimmed: packages of which only what the agent needs is kept.
        whole: those of a recipe, of which all that a program may need is.
        root: the directory, which exists and is empty.

    Raises:
        ResourceExhausted, DeadlineExceeded, Internal: as `commands.pipe`.
    """
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    _unpack(trimmed, root, _EXCLUDED)
    for library in root.glob("usr/lib/python3.*"):
        for pattern in _STDLIB_UNNEEDED:
            for path in library.glob(pattern):
                _delete(path)
    _unpack(whole, root, _UNREAD)


def _unpack(debs: Sequence[Path], root: Path, excluded: Iterable[str]) -> None:
    excludes = [f"--exclude={pattern}" for pattern in excluded]
    for deb in debs:
        pipe(
            ["dpkg-deb", "--fsys-tarfile", str(deb)],
            ["tar", "--extract", "--no-same-owner", "--keep-directory-symlink", f"--directory={root}", *excludes],
            timeout=_TOOL_TIMEOUT_S,
        )


def unpack_part(deb: Path, target: Path, *parts: str) -> None:
    """Unpack some directories of a package.

    Args:
        deb: the package.
        target: directory to unpack into.
        *parts: the directories' names in the archive, such as "./boot".

    Raises:
        ResourceExhausted, DeadlineExceeded, Internal: as `commands.pipe`.
    """
    pipe(
        ["dpkg-deb", "--fsys-tarfile", str(deb)],
        ["tar", "--extract", "--no-same-owner", "--keep-directory-symlink", f"--directory={target}", *parts],
        timeout=_TOOL_TIMEOUT_S,
    )


def python_library(root: Path) -> str:
    """The directory of the standard library of the guest's Python, seen from the guest, e.g. "/usr/lib/python3.13"."""
    return f"/usr/lib/{os.readlink(root / 'usr/bin/python3')}"


def index_modules(root: Path, release: str, emulator: Path | None = None) -> ModuleTree:
    """What modules the root has, found out by the guest's own depmod.

    Args:
        root: the guest's root, with the kernel's modules in it.
        release: e.g. "6.12.118+deb13-amd64".
        emulator: see `commands.run_in`.
    """
    run_in(root, "/usr/sbin/depmod", release, timeout=_TOOL_TIMEOUT_S, emulator=emulator)
    modules = root / MODULES / release
    return ModuleTree.parse((modules / "modules.dep").read_text(), (modules / "modules.builtin").read_text())


def trim_modules(
    tree: ModuleTree, root: Path, release: str, names: Iterable[str], emulator: Path | None = None
) -> ModuleTree:
    """Leave the modules that the guest needs, not compressed: an emulated vCPU would decompress them each time.

    Args:
        tree: what there is.
        root: the guest's root.
        release: e.g. "6.12.118+deb13-amd64".
        names: of modules, or patterns.
        emulator: see `commands.run_in`.

    Returns:
        What is left.

    Raises:
        NotFound: the kernel lacks one.
    """
    modules = root / MODULES / release
    wanted = set(tree.load_order(names))
    for path in tree.dependencies:
        module = modules / path
        if path in wanted and module.suffix == ".xz":
            module.with_suffix("").write_bytes(lzma.decompress(module.read_bytes()))
        if path not in wanted or module.suffix == ".xz":
            module.unlink()
    for directory, subdirectories, names in os.walk(modules, topdown=False):
        if not names and not any((Path(directory) / name).exists() for name in subdirectories):
            Path(directory).rmdir()
    return index_modules(root, release, emulator)


def configure(
    root: Path,
    recipe: Recipe,
    ldconfig: Path,
    other: Path | None = None,
    architecture: Architecture = HOST,
    emulator: Path | None = None,
) -> None:
    """What the packages' scripts would have done, what a read-only root needs, and what a recipe puts there.

    Args:
        root: the guest's root, with its packages.
        recipe: whose files and users it gets.
        ldconfig: of the guest's suite: each version writes other bytes.
        other: another root file system, see `fill`.
        architecture: of the guest.
        emulator: see `commands.run_in`.

    Raises:
        FailedPrecondition: the other root is for another architecture.
        InvalidArgument: a file of the recipe cannot be put there, or a user's number is another one's.
        OSError: the disk is full.
    """
    for name in _DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "root").chmod(0o700)
    (root / "tmp").chmod(0o1777)
    for name, content in _FILES.items():
        (root / name).write_text(content)
    for name, target in _SYMLINKS.items():
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)
    # Only now: nothing above was written through a link of the other's. Its programs go before busybox's.
    if other:
        fill(root, other, architecture)
    install_applets(root, emulator)
    add(root, recipe)
    if architecture is HOST:
        # It knows the libraries of its own architecture only. Without it the loader looks into the usual directories.
        run([str(ldconfig), "-r", str(root)], timeout=_TOOL_TIMEOUT_S)
        _delete(root / "var/cache/ldconfig")


def fill(root: Path, other: Path, architecture: Architecture = HOST) -> None:
    """Put another root file system's files where the root has none: what the agent needs stays as it is.

    Programs, libraries and interpreters keep their paths, since /bin, /lib, /lib64 and /sbin are links into /usr here.

    Args:
        root: the guest's.
        other: a directory, e.g. of an unpacked image.
        architecture: of the guest.

    Raises:
        FailedPrecondition: its programs are for another architecture.
        ResourceExhausted, DeadlineExceeded, Internal: as `commands.pipe`.
    """
    _check_architecture(other, architecture)
    python = python_library(root).lstrip("/")
    excludes = [f"--exclude=./{name}" for name in (*_NOT_TAKEN, python)]
    read = ["tar", "--create", f"--directory={other}", "--sort=name", *excludes]
    # --keep-directory-symlink: what is in the other's /bin comes into /usr/bin. No link of the other is followed: tar
    # finds none where a directory is, and those of the root are relative and stay in it.
    write = ["tar", "--extract", f"--directory={root}", "--skip-old-files", "--keep-directory-symlink"]
    pipe([*read, "."], [*write, "--no-same-owner", "--preserve-permissions"], timeout=_TOOL_TIMEOUT_S)


def _check_architecture(other: Path, architecture: Architecture) -> None:
    for directory in ("bin", "usr/bin", "sbin", "usr/sbin"):
        for path in sorted((other / directory).iterdir()) if (other / directory).is_dir() else ():
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                header = file.read(20)
            if header[:4] == b"\x7fELF" and int.from_bytes(header[18:20], "little") != architecture.elf:
                raise FailedPrecondition(
                    f"{path.relative_to(other)} of {other} is not a program for {architecture.machine}",
                    hint=f"take the image for {architecture.platform}",
                )


def add(root: Path, recipe: Recipe) -> None:
    """Put a recipe's users, files and settings of the agent into a root.

    Raises:
        InvalidArgument: as `configure`.
        OSError: the disk is full.
    """
    for user in recipe.users:
        _append(root / "etc/passwd", f"{user.name}:x:{user.id}:{user.id}::{user.home}:{user.shell}\n", user.id)
        _append(root / "etc/group", f"{user.name}:x:{user.id}:\n", user.id)
    for file in recipe.files:
        path = root / file.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Through no link: a package may have one here that leads out of the root.
            if path.parent.resolve() != root.resolve() / path.parent.relative_to(root):
                raise InvalidArgument(f"recipe {recipe.name}: a directory of /{file.path} is a symbolic link")
            path.unlink(missing_ok=True)
        except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            raise InvalidArgument(f"recipe {recipe.name}: /{file.path}: {(error.strerror or '').lower()}") from None
        path.write_bytes(file.content)
        path.chmod(file.mode)
    if recipe.agent:
        (root / OF_IMAGE.lstrip("/")).write_text(f"{agent_parameters(dict(recipe.agent))}\n")


def _append(table: Path, line: str, number: int) -> None:
    text = table.read_text()
    name = line.partition(":")[0]
    for other, _, found, *_ in (row.split(":") for row in text.splitlines()):
        if other == name or found == str(number):
            raise InvalidArgument(f"user {name} with number {number}: /etc/{table.name} has {other} with {found}")
    table.write_text(text + line)


def compile_python(root: Path, *directories: str, emulator: Path | None = None) -> None:
    """Compile modules with the guest's Python; for `emulator` see `commands.run_in`.

    The compiled files are never compared with their sources: time stamps, the usual way, do not survive in the image.
    """
    # -B and -f: what the compiler itself imports it would otherwise cache in the usual way, and then take for compiled.
    compiler = ["-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
    command = ["/usr/bin/python3", "-ISB", *compiler, *directories]
    run_in(root, *command, timeout=_TOOL_TIMEOUT_S, emulator=emulator)


def check(root: Path, architecture: Architecture = HOST, emulator: Path | None = None) -> None:
    """Run what the agent builds on once; for `emulator` see `commands.run_in`.

    Raises:
        Internal: a program or module of the root does not work, or a module would be compiled at each start.
    """
    for compiled in root.rglob("*.pyc"):
        with compiled.open("rb") as file:
            if file.read(8)[4:] != _UNCHECKED:
                raise Internal(f"{compiled.relative_to(root)} depends on its source's time stamp")
    run_in(root, "/usr/bin/python3", "-ISB", "-c", _CHECK, timeout=_TOOL_TIMEOUT_S, emulator=emulator)
    for program in ("/usr/bin/crun", "/usr/bin/kmod"):
        # Not run: without /proc, crun does not start. The dynamic loader fails where a library is missing.
        run_in(root, architecture.loader, "--list", program, timeout=_TOOL_TIMEOUT_S, emulator=emulator)


def pack(root: Path, archive: Path) -> None:
    """The directory as a tar file whose bytes depend on its content only."""
    sorting = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"]
    run(["tar", "--create", f"--file={archive}", f"--directory={root}", *sorting, "."], timeout=_TOOL_TIMEOUT_S)


def unpack_archive(archive: Path, root: Path) -> None:
    """The reverse of :func:`pack`."""
    root.mkdir()
    run(
        ["tar", "--extract", f"--file={archive}", f"--directory={root}", "--preserve-permissions"],
        timeout=_TOOL_TIMEOUT_S,
    )


def install_applets(root: Path, emulator: Path | None = None) -> None:
    """A shell and the usual small tools, for the debug console and for hooks: busybox under the names that are free."""
    binaries = root / "usr/bin"
    listed = run_in(root, "/bin/busybox", "--list", timeout=_TOOL_TIMEOUT_S, emulator=emulator)
    for applet in listed.split():
        if not any(os.path.lexists(root / "usr" / where / applet) for where in ("bin", "sbin")):
            (binaries / applet).symlink_to("busybox")


def _delete(path: Path) -> None:
    if stat.S_ISDIR(path.lstat().st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()
