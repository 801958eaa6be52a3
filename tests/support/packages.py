"""Debian packages, unpacked without being installed: for images, and for the registry."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from kata.command import run
from kata.errors import KataError
from kata.linux import atomic_file
from kata.osbuilder.commands import pipe
from kata.osbuilder.packages import Package, PackageCache
from kata.osbuilder.store import lock
from kata.runtime.images.model import ImageConfig
from tests.support.images import busybox_rootfs, write_oci_archive

#: Packages are kept there for the next run.
_CACHE = Path("/var/cache/kata-test")
_TIMEOUT_S = 60.0
_LOCK_TIMEOUT_S = 120.0

NGINX = ("nginx",)
PYTHON = ("python3-minimal", "libpython3-stdlib")
IPTABLES = ("iptables",)
#: Programs that people run, for `tests.support.realprograms`.
PROGRAMS = (*PYTHON, "postgresql-17", "redis-server", "git", "apt", "dpkg", "tar", "rsync", "nodejs", "coreutils")

#: Compiles what runs in containers of this directory, and what it imports of Python's library. The latter, packages do
#: when they are installed; an emulated guest takes seconds for it, at each start.
_COMPILER = """
import contextlib, importlib, pathlib, py_compile, sys
sys.path.insert(0, "/")
for path in pathlib.Path("/support").glob("*.py"):
    with contextlib.suppress(Exception):  # it is for the host, and finds nothing of it here
        importlib.import_module(f"support.{path.stem}")
for path in {getattr(module, "__file__", None) or "" for module in sys.modules.values()}:
    if path.endswith(".py"):
        # Time stamps do not survive in the image.
        py_compile.compile(path, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
"""

#: The release after those that are hosts. Programs that are linked statically, as Go's nearly are, run on them.
NEXT_RELEASE = "forky"

#: Dependencies that the containers of tests do not need.
UNNEEDED = ("debconf", "dpkg", "iproute2", "perl-base", "media-types", "openssl-provider-*", "tar", "tzdata")
#: Of the programs' as well: interpreters and compilers that they work without, and what only their installation needs.
_UNNEEDED_BY_PROGRAMS = (
    "debconf",
    "libllvm*",
    "libz3-4",
    "perl*",
    "libperl*",
    "postgresql-*common*",
    "locales",
    "libc-l10n",
)

_NGINX_CONF = """\
daemon off;
worker_processes 1;
error_log /dev/stderr;
events {}
http {
    access_log /dev/stdout;
    server {
        listen 80;
        listen [::]:80;
        root /srv;
    }
}
"""


def nginx_archive(out: Path, name: str) -> Path:
    """Write an image with nginx, which serves /srv on port 80 over IPv4 and IPv6; return `out`. Raises as `unpack`."""
    rootfs = _rootfs(out, NGINX)
    (rootfs / "etc/nginx/nginx.conf").write_text(_NGINX_CONF)
    (rootfs / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    (rootfs / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (rootfs / "srv").mkdir(exist_ok=True)
    (rootfs / "srv/index.html").write_text("served by nginx\n")
    for directory in ("var/log/nginx", "var/lib/nginx", "run"):
        (rootfs / directory).mkdir(parents=True, exist_ok=True)
    command = ("/usr/sbin/nginx", "-g", "user nobody nogroup;")
    return write_oci_archive(rootfs, ImageConfig(cmd=command, env=("PATH=/usr/sbin:/usr/bin:/bin",)), out, name)


def python_archive(out: Path, name: str) -> Path:
    """Write an image with Python, its standard library and the programs of this directory; return `out`.

    Raises as `unpack`.
    """
    rootfs = _rootfs(out, PYTHON)
    _put_programs(rootfs)
    config = ImageConfig(cmd=("/usr/bin/python3",), env=("PATH=/usr/bin:/bin",))
    return write_oci_archive(rootfs, config, out, name)


def iptables_archive(out: Path, name: str) -> Path:
    """Write an image with iptables and ip6tables over nf_tables, and busybox; return `out`. Raises as `unpack`."""
    rootfs = _rootfs(out, IPTABLES)
    for program in ("iptables", "ip6tables"):
        (rootfs / "usr/sbin" / program).symlink_to("xtables-nft-multi")
    return write_oci_archive(rootfs, ImageConfig(cmd=("sh",), env=("PATH=/usr/sbin:/usr/bin:/bin",)), out, name)


def programs_archive(out: Path, name: str) -> Path:
    """Write an image with the programs of `tests.support.realprograms`; return `out`. Raises as `unpack`."""
    rootfs = _rootfs(out, PROGRAMS, _UNNEEDED_BY_PROGRAMS)
    _put_programs(rootfs)
    with (rootfs / "etc/passwd").open("a") as passwd:
        passwd.write("postgres:x:100:100::/tmp:/bin/sh\nredis:x:101:101::/tmp:/bin/sh\n")
    for directory in ("info", "updates", "alternatives", "triggers"):
        (rootfs / "var/lib/dpkg" / directory).mkdir(parents=True, exist_ok=True)
    for file in ("status", "available"):
        (rootfs / "var/lib/dpkg" / file).touch()
    config = ImageConfig(cmd=("/usr/bin/python3",), env=("PATH=/usr/sbin:/usr/bin:/sbin:/bin",))
    return write_oci_archive(rootfs, config, out, name)


def containerd_2(directory: Path) -> Path:
    """Unpack containerd 2, its ctr and its shim for runc; return the directory of the programs. Raises as `unpack`."""
    unpack(directory, "containerd", suite=NEXT_RELEASE, alone=True)
    return directory / "usr/bin"


def unpack(
    directory: Path, *names: str, suite: str = "", alone: bool = False, leave_out: tuple[str, ...] = UNNEEDED
) -> None:
    """Unpack packages and their dependencies into a directory, without running maintainer scripts.

    Args:
        directory: where to.
        names: of the packages.
        suite: of the packages; "" for the guest's.
        alone: leave the dependencies out.
        leave_out: patterns of dependencies that are not needed.

    Raises:
        Unavailable: a package cannot be downloaded.
        Internal: a package does not exist.
    """
    unneeded = None if alone else leave_out
    kept = _CACHE / suite if suite else _CACHE
    cache = PackageCache(kept, name=suite)
    kept.mkdir(parents=True, exist_ok=True)
    # Another run may be at it: the builder's apt locks nothing.
    with lock(kept, timeout=_LOCK_TIMEOUT_S):
        try:
            packages = _fetch(cache, kept, names, unneeded)
        except KataError:  # no lists yet, or old ones
            cache.update()
            packages = _fetch(cache, kept, names, unneeded)
    for package in packages:
        pipe(
            ["dpkg-deb", "--fsys-tarfile", str(cache.path(package))],
            ["tar", "--extract", "--keep-directory-symlink", f"--directory={directory}", "--exclude=./usr/share/doc"],
            timeout=_TIMEOUT_S,
        )


def _fetch(cache: PackageCache, kept: Path, names: tuple[str, ...], leave_out: tuple[str, ...] | None) -> list[Package]:
    packages = _chosen(cache, kept, names, leave_out)
    if missing := cache.missing(packages):
        cache.download(missing)
    return packages


def _chosen(
    cache: PackageCache, kept: Path, names: tuple[str, ...], leave_out: tuple[str, ...] | None
) -> list[Package]:
    """The packages, with their dependencies unless `leave_out` is None. apt thinks about these for seconds: it is asked
    once for the same lists.
    """
    if leave_out is None:
        return cache.named(*names)
    asked = hashlib.sha256(json.dumps([names, leave_out]).encode()).hexdigest()
    answer = kept / f"{asked[:16]}.json"
    if answer.exists() and answer.stat().st_mtime > (kept / "apt/lists").stat().st_mtime:
        return [Package(**package) for package in json.loads(answer.read_text())]
    packages = cache.closure(names, leave_out=leave_out)
    atomic_file.write(answer, json.dumps([asdict(package) for package in packages]).encode())
    return packages


def merge_usr(rootfs: Path) -> None:
    """Make /bin and /lib links, as packages expect that may have files under either name."""
    for directory in ("bin", "sbin", "lib", "lib64"):
        (rootfs / "usr" / directory).mkdir(parents=True)
        (rootfs / directory).symlink_to(f"usr/{directory}")


def _rootfs(out: Path, names: tuple[str, ...], leave_out: tuple[str, ...] = UNNEEDED) -> Path:
    """Make a directory beside `out` with the files of busybox and of the packages."""
    rootfs = out.with_name(f"{out.name}.rootfs")
    rootfs.mkdir()
    merge_usr(rootfs)
    busybox_rootfs(rootfs)
    unpack(rootfs, *names, leave_out=leave_out)
    return rootfs


def _put_programs(rootfs: Path) -> None:
    """Put this directory where its programs expect it, and compile them."""
    (rootfs / "support").mkdir()
    for path in Path(__file__).parent.glob("*.py"):
        shutil.copy(path, rootfs / "support")
    run(["chroot", str(rootfs), "/usr/bin/python3", "-IBc", _COMPILER], timeout=_TIMEOUT_S)
