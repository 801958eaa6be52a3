"""`make test-hosts`: the project in a clean root of each Debian release that this host is not.

The root is made by mmdebstrap, once a week, and kept as an archive. A run unpacks it into a file system in a file
without a name, mounted in a mount namespace of its own, and runs in a PID namespace of its own. When the first process
of that namespace ends, however, the kernel ends all others, unmounts everything and frees the space: nothing is left to
be removed, even after SIGKILL.

The guest image that the first step builds must be the same, byte for byte, as one of this host's with that version.

Network and devices are the host's. What the host says of mirrors, proxies and certificates counts in the root as well:
variables of the environment, pip's settings, and the files that they name.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kata.osbuilder import store, suite
from tests.support.evidence import FAILURES

PROJECT = Path(__file__).parents[1]
#: What `make dist` has made; the root has it as well.
BUILT = PROJECT / "dist"
ARCHIVES = Path("/var/cache/kata-test")
#: What a newcomer has, to come as far as `make run`.
INCLUDED = "make,git,ca-certificates"
#: Chosen to be fast, and to meet what differs between releases: Python, QEMU, its file servers, containerd, runc.
TESTS = (
    "tests/unit",
    "tests/vm/test_hypervisor.py",
    "tests/vm/test_template.py",
    "tests/integration/containerd/test_file_cases.py",
    "tests/integration/containerd/test_file_semantics.py",
    "tests/integration/containerd/test_virtio_fs.py",
)
STEPS = ("make run", "make test-packages", f".venv/bin/pytest -q {' '.join(TESTS)}")

_WEEK_S = 7 * 24 * 3600.0
_SIZE = 12 << 30  # of a sparse file
_PLACE = "root/pykata"  # of the project, below the root
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED = re.compile(r"PIP_.*|.*_PROXY|SSL_CERT_.*|(REQUESTS|CURL)_CA_BUNDLE|KATA_MIRROR", re.IGNORECASE)
# How apt reaches a mirror, and whether it may be an old one.
_ROUTE = re.compile(r"^Acquire::(?:https?::.*|Check-Valid-Until .*)$", re.MULTILINE)
_SETTING = re.compile(r"^(?:global|install|:env:)\.([a-z-]+)=(.*)$", re.MULTILINE)


def others(version: str) -> list[suite.Release]:
    """The releases that may be hosts, but for that of a version (VERSION_ID in os-release(5))."""
    return [release for release in suite.releases() if release.host and release.number != version]


def environment(variables: Mapping[str, str], pip: str) -> dict[str, str]:
    """What processes in the root find in their environment.

    Args:
        variables: this process's.
        pip: what `pip config list` prints; each setting becomes the variable that stands for it.
    """
    settings = {name: str(ast.literal_eval(value)) for name, value in _SETTING.findall(pip)}
    return {
        **{f"PIP_{name.upper().replace('-', '_')}": " ".join(value.split()) for name, value in settings.items()},
        **{name: value for name, value in variables.items() if _PASSED.fullmatch(name)},
        "PATH": _PATH,
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
    }


def named_files(values: Iterable[str]) -> list[Path]:
    """The files and directories of this host that an environment names, by path or by file URL."""
    found = set()
    for word in (word for value in values for word in value.split()):
        path = Path(word.removeprefix("file://"))
        if path.is_absolute() and path.exists():
            # A package index is a directory "simple" whose pages refer to files beside it.
            found.add(path.parent if path.name == "simple" else path)
    return sorted(found)


def archive_of(release: suite.Release) -> Path:
    """The archive of a clean root, made anew when it is old."""
    path = ARCHIVES / f"root-{release.suite}.tar"
    if not path.exists() or time.time() - path.stat().st_mtime > _WEEK_S:
        ARCHIVES.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=ARCHIVES, prefix=".root-") as staging:
            mirror = os.environ.get("KATA_MIRROR") or suite.MIRROR
            options = ("--quiet", "--variant=minbase", f"--include={INCLUDED}", "--format=tar")
            sources = suite.sources(release.suite, mirror)
            subprocess.run(
                ["mmdebstrap", *options, release.suite, staging.name, "-"], input=sources, text=True, check=True
            )
            shutil.copyfile(staging.name, path)
    return path


def run(release: suite.Release, steps: Sequence[str] = STEPS) -> int:
    """Run all steps in a clean root of a release; the status of the first that fails, or 0."""
    archive = archive_of(release)
    # The kernel kills unshare(1) when this process dies, which kills the first of the namespace.
    isolated = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL")
    disk = os.open(ARCHIVES, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        os.truncate(disk, _SIZE)
        path = f"/proc/self/fd/{disk}"
        subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", path], pass_fds=[disk], check=True)
        command = (*isolated, sys.executable, "-m", "tools.test_hosts", "--inside", path, str(archive), *steps)
        return subprocess.run(command, cwd=PROJECT, pass_fds=[disk], check=False).returncode
    finally:
        os.close(disk)


def inside(disk: str, archive: str, *steps: str) -> int:
    """The first process of the namespaces: put the root together, run the steps in it.

    Args:
        disk: a file with an empty file system.
        archive: of the root.
        steps: command lines, in the project's directory.
    """
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    root = ARCHIVES / "root"
    root.mkdir(exist_ok=True)
    ours = manifests()
    descriptor = int(disk.rpartition("/")[2])
    subprocess.run(["mount", "-o", "loop", disk, root], pass_fds=[descriptor], check=True)
    subprocess.run(["tar", "--extract", f"--file={archive}", f"--directory={root}", "--numeric-owner"], check=True)
    pip = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    variables = environment(os.environ, pip.stdout)
    for name in ("dev", "sys"):
        subprocess.run(["mount", "--rbind", f"/{name}", root / name], check=True)
    for name, kind in (("proc", "proc"), ("run", "tmpfs"), ("tmp", "tmpfs")):
        subprocess.run(["mount", "-t", kind, kind, root / name], check=True)
    for path in (
        *named_files(value for name, value in variables.items() if _PASSED.fullmatch(name)),
        Path("/etc/resolv.conf"),
        Path("/etc/hosts"),
    ):
        bind(path.resolve(), root / path.relative_to("/"))
    dumped = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    (root / "etc/apt/apt.conf.d/90host").write_text("\n".join(_ROUTE.findall(dumped)) + "\n")
    copy_project(root / _PLACE)
    if BUILT.is_dir():
        bind(BUILT, root / _PLACE / BUILT.name)
    FAILURES.mkdir(parents=True, exist_ok=True)
    bind(FAILURES, root / _PLACE / FAILURES.relative_to(PROJECT))
    # Not chroot(2): runc makes sense of a root only if it is that of its mount namespace.
    subprocess.run(["pivot_root", root, root / "mnt"], check=True)
    os.chdir("/")
    subprocess.run(["umount", "--lazy", "/mnt"], env=variables, check=True)
    # A shell without job control has what it runs in the background ignore this one, and so would all tests.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for step in steps:
        begin = time.monotonic()
        print(f"$ {step}", flush=True)
        status = wait_for(subprocess.Popen(["sh", "-c", f"cd /{_PLACE} && {step}"], env=variables))
        print(f"ended with {status} after {time.monotonic() - begin:.0f} s", flush=True)
        if status:
            return status
    return compare(ours, manifests())


def manifests() -> dict[str, str]:
    """The manifests of all guest images, by version: they have the digests of all files."""
    return {image.version: (image.directory / store.MANIFEST).read_text() for image in store.list_images()}


def compare(ours: Mapping[str, str], theirs: Mapping[str, str]) -> int:
    """1 if an image is not the same on this host and in the root, else 0.

    Args:
        ours: manifests by version.
        theirs: the same of the root.
    """
    for version, manifest in theirs.items():
        if version not in ours:
            print(f"guest image {version}: this host has none of that version to compare it with", flush=True)
        elif ours[version] != manifest:
            print(f"guest image {version} is not the same as this host's", flush=True)
            return 1
        else:
            print(f"guest image {version} is the same as this host's, to the bit", flush=True)
    return 0


def bind(source: Path, target: Path) -> None:
    """Have a file or directory of the host's in the root, under the same name."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    subprocess.run(["mount", "--bind", source, target], check=True)


def copy_project(target: Path) -> None:
    """The project's files as they are now, committed or not, without what git ignores."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (PROJECT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, target / name)


def wait_for(child: subprocess.Popen[bytes]) -> int:
    """A child's status. Whatever else ends meanwhile is reaped: orphans are the first process's."""
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode if child.returncode >= 0 else 128 - child.returncode


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--inside"]:
        return inside(*arguments[1:])
    for release in others(platform.freedesktop_os_release().get("VERSION_ID", "")):
        print(f"Debian {release.number} ({release.suite})", flush=True)
        if status := run(release):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
