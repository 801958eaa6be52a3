"""Programs that people run, on files, by a Python in a container with them (see `fileprograms`):

    python3 -m support.realprograms DIRECTORY FILES [NAME...]

uses as many files where a program is tried with many; all programs, or those named. It prints a JSON object: each
program, and true or what was wrong, and how long it took.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .fileprograms import told, write

PROGRAMS: dict[str, Callable[[int], None]] = {}
#: Nothing that works takes as long, on a busy host and under emulation.
_STEP_TIMEOUT_S = 300
_POSTGRES = "/usr/lib/postgresql/17/bin"
#: Debian's user of that name.
_POSTGRES_USER = 100


class WrongError(Exception):
    """A program does not do what it does on a host."""


def program(name: str) -> Callable[[Callable[[int], None]], Callable[[int], None]]:
    def enter(function: Callable[[int], None]) -> Callable[[int], None]:
        PROGRAMS[name] = function
        return function

    return enter


def _run(*command: str, user: int = 0, said: str | None = None) -> str:
    """Run a command to its end; return what it says, which may have to be something."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_STEP_TIMEOUT_S, user=user, group=user, extra_groups=[]
    )
    if done.returncode:
        raise WrongError(f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
    _expect(" ".join(command)[:60], done.stdout.strip() if said is None else said, done.stdout.strip())
    return done.stdout


def _expect(what: str, wanted: object, found: object) -> None:
    if wanted != found:
        raise WrongError(f"{what}: {str(found)[:200]!r} instead of {str(wanted)[:200]!r}")


def _within(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _STEP_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise WrongError(f"{what}: not within {_STEP_TIMEOUT_S} s")
        time.sleep(0.1)


@contextmanager
def _running(*command: str, user: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs meanwhile, and is killed at the end."""
    with open(f"{os.path.basename(command[0])}.log", "ab") as log:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=user, group=user, extra_groups=[]
        ) as running:
            try:
                yield running
            finally:
                running.kill()


def _tree(root: str, files: int, directories: int = 20) -> None:
    """Write many small files, no two alike, in nested directories."""
    for number in range(files):
        place = f"{root}/{number % directories}/{number % 7}/{number % 3}"
        if number < directories * 21:
            os.makedirs(place, exist_ok=True)
        write(f"{place}/{number}", f"content of {number}\n".encode() * (1 + number % 5))


def _summary(root: str, *, inodes: bool = False) -> str:
    """A digest over the names, kinds, modes, owners, links and contents of a tree."""
    digest = hashlib.sha256()
    for place, directories, files in os.walk(root):
        directories.sort()
        for name in sorted(directories + files):
            path = f"{place}/{name}"
            info = os.lstat(path)
            facts: list[object] = [os.path.relpath(path, root), info.st_mode, info.st_uid, info.st_gid]
            if stat.S_ISREG(info.st_mode):
                facts += [info.st_size, info.st_nlink, int(info.st_mtime)]
                with open(path, "rb") as file:
                    facts.append(hashlib.file_digest(file, "sha256").hexdigest())
            if stat.S_ISLNK(info.st_mode):
                facts.append(os.readlink(path))
            if inodes:
                facts.append(info.st_ino)
            digest.update(repr(facts).encode())
    return digest.hexdigest()


@program("git")
def _git(files: int) -> None:
    os.environ.update(HOME=os.getcwd(), GIT_CONFIG_NOSYSTEM="1")
    for name, value in (("user.name", "kata"), ("user.email", "kata@example.com"), ("gc.auto", "0")):
        _run("git", "config", "--global", name, value)
    _run("git", "init", "-q", "-b", "main", "one")
    _tree("one/tree", files)
    _run("git", "-C", "one", "add", ".")
    _run("git", "-C", "one", "commit", "-q", "-m", "first")
    _run("git", "-C", "one", "status", "--porcelain", said="")
    write("one/tree/0/0/0/0", b"changed")
    os.unlink("one/tree/1/1/1/1")
    _run("git", "-C", "one", "status", "--porcelain", said="M tree/0/0/0/0\n D tree/1/1/1/1")
    _run("git", "-C", "one", "commit", "-q", "-a", "-m", "second")
    _run("git", "-C", "one", "checkout", "-q", "-b", "old", "HEAD~1")
    _run("git", "-C", "one", "status", "--porcelain", said="")
    _run("git", "-C", "one", "gc", "-q")
    _run("git", "clone", "-q", "one", "two")
    _run("git", "-C", "two", "ls-files", said="\n".join(sorted(_run("git", "-C", "one", "ls-files").split())))
    _run("git", "-C", "two", "fsck", "--full", "--no-progress", said="")


@program("a tree as npm makes it")
def _npm(files: int) -> None:
    os.makedirs("node_modules/.staging")
    _tree("node_modules/.staging/package", files)
    for place, _, names in os.walk("node_modules/.staging/package"):
        for name in names:
            if int(name) % 10 == 0:  # written anew beside it, and put in its place
                write(f"{place}/.{name}.tmp", b"new")
                os.rename(f"{place}/.{name}.tmp", f"{place}/{name}")
    before = _summary("node_modules/.staging/package")
    os.rename("node_modules/.staging/package", "node_modules/package")
    _expect("the tree after the rename", before, _summary("node_modules/package"))
    os.symlink("../package", "node_modules/.bin")
    shutil.rmtree("node_modules")
    _expect("what is left", False, os.path.exists("node_modules"))


def _kinds(root: str) -> None:
    """A tree with what archives have to keep."""
    _tree(root, 300)
    os.chmod(f"{root}/0", 0o2770)
    for number in range(0, 300, 3):
        path = f"{root}/{number % 20}/{number % 7}/{number % 3}/{number}"
        os.chown(path, number + 1, 65534 - number)
        os.chmod(path, (0o644, 0o4755, 0o2711, 0o600)[number % 4])
        os.utime(path, (number, number * 1000))
    os.link(f"{root}/0/0/0/0", f"{root}/hard")
    os.symlink("0/0/0/0", f"{root}/soft")
    os.symlink("nowhere", f"{root}/dangling")
    os.lchown(f"{root}/dangling", 12, 34)
    os.mkfifo(f"{root}/fifo")
    write(f"{root}/{'n' * 200}")
    with open(f"{root}/sparse", "wb") as file:
        file.truncate(10 << 20)


@program("tar")
def _tar(files: int) -> None:
    del files
    _kinds("tree")
    _run("tar", "--create", "--file=tree.tar", "--numeric-owner", "--sparse", "tree")
    os.mkdir("out")
    _run(
        "tar", "--extract", "--file=tree.tar", "--numeric-owner", "--same-owner", "--preserve-permissions", "-C", "out"
    )
    _expect("what was unpacked", _summary("tree"), _summary("out/tree"))
    _run("tar", "--compare", "--file=tree.tar", "--numeric-owner", said="")


@program("rsync")
def _rsync(files: int) -> None:
    del files
    _kinds("tree")
    copy = ("rsync", "--archive", "--hard-links", "--numeric-ids", "--delete")
    _run(*copy, "tree/", "copy/")
    _expect("the copy", _summary("tree"), _summary("copy"))
    shutil.rmtree("tree/3")
    write("tree/0/0/0/0", b"changed")
    _run(*copy, "tree/", "copy/")
    _expect("the copy, again", _summary("tree"), _summary("copy"))
    _run(*copy, "--itemize-changes", "tree/", "copy/", said="")


def _built(directory: str, name: str, version: str, *fields: str) -> str:
    """Build a Debian package of what is in a directory; the file's name."""
    control = (f"Package: {name}", f"Version: {version}", "Architecture: all", "Maintainer: nobody", *fields)
    os.makedirs(f"{directory}/DEBIAN", exist_ok=True)
    write(f"{directory}/DEBIAN/control", "\n".join((*control, "Description: files\n")).encode())
    _run("dpkg-deb", "--build", "-Zgzip", directory, f"{directory}.deb")
    return f"{directory}.deb"


@program("dpkg")
def _dpkg(files: int) -> None:
    del files
    for version in ("1", "2"):
        _kinds(f"package-{version}/opt/kata")
        shutil.rmtree(f"package-{version}/opt/kata/{version}")
        os.unlink(f"package-{version}/opt/kata/fifo")
        os.makedirs(f"package-{version}/DEBIAN")
        write(f"package-{version}/DEBIAN/postinst", b"#!/bin/sh\necho $1 $2 >>/opt/kata/done\n")
        os.chmod(f"package-{version}/DEBIAN/postinst", 0o755)
        _built(f"package-{version}", "kata-files", version)
    for version, here, gone in (("1", "2", "1"), ("2", "1", "2")):
        _run("dpkg", "--install", f"package-{version}.deb")
        _expect(
            f"directories of {version}", (True, False), tuple(os.path.exists(f"/opt/kata/{n}") for n in (here, gone))
        )
        _run("dpkg", "--verify", "kata-files", said="")
    owner = os.stat("/opt/kata/3/3/0/3")
    _expect("an owner", (4, 65531), (owner.st_uid, owner.st_gid))
    with open("/opt/kata/done") as file:
        _expect("what was run", "configure\nconfigure 1\n", file.read().replace(" \n", "\n"))
    os.unlink("/opt/kata/done")
    _run("dpkg", "--purge", "kata-files")
    _expect("what is left", False, os.path.exists("/opt/kata"))


@program("apt")
def _apt(files: int) -> None:
    """Packages of a local archive are installed, upgraded and removed, each with what it depends on."""
    del files
    os.mkdir("archive")
    here = os.getcwd()
    write("sources.list", f"deb [trusted=yes] file:{here}/archive ./\n".encode())
    settings = (f"Dir::Etc::SourceList={here}/sources.list", "Dir::Etc::SourceParts=-", "APT::Sandbox::User=root")
    apt = ("apt-get", "--quiet", "--yes", *(f"--option={setting}" for setting in settings))

    def offer(name: str, version: str, *fields: str) -> None:
        directory = f"archive/{name}-{version}"
        _tree(f"{directory}/opt/{name}/{version}", 200)
        package = _built(directory, name, version, *fields)
        with open(package, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        facts = f"Filename: {os.path.relpath(package, 'archive')}\nSize: {os.stat(package).st_size}\nSHA256: {digest}\n"
        with open("archive/Packages", "a") as index:
            index.write(f"{_run('dpkg-deb', '--field', package)}{facts}\n")
        _run(*apt, "update")

    def installed(*packages: str) -> None:
        _run("dpkg-query", "--show", "--showformat=${Package} ${Version}\\n", "kata-*", said="\n".join(packages))
        _run("dpkg", "--verify", *(package.split()[0] for package in packages), said="")

    offer("kata-library", "1")
    offer("kata-program", "1", "Depends: kata-library")
    _run(*apt, "install", "kata-program")
    installed("kata-library 1", "kata-program 1")
    offer("kata-library", "2")
    _run(*apt, "dist-upgrade")
    installed("kata-library 2", "kata-program 1")
    _expect("directories of the library", ["2"], os.listdir("/opt/kata-library"))
    _run(*apt, "purge", "kata-library")
    _expect("what is left", False, os.path.exists("/opt/kata-library") or os.path.exists("/opt/kata-program"))


def _redis_call(*words: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_STEP_TIMEOUT_S)
        client.connect("redis.sock")
        said = b""
        client.sendall(b"".join((f"{word}\r\n").encode() for word in (" ".join(words), "QUIT")))
        while data := client.recv(4096):
            said += data
    return said.decode().removesuffix("+OK\r\n").strip()


def _redis_up() -> bool:
    try:
        return _redis_call("PING") == "+PONG"
    except OSError:
        return False


@program("Redis, with an append-only file")
def _redis(files: int) -> None:
    del files
    options = (
        "--port",
        "0",
        "--unixsocket",
        "redis.sock",
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--save",
        "",
    )
    for begin in (0, 200):
        with _running("/usr/bin/redis-server", *options) as server:
            _within("Redis answers", _redis_up)
            _expect("keys", f":{begin}", _redis_call("DBSIZE"))
            for number in range(begin, begin + 200):
                _expect("SET", "+OK", _redis_call("SET", f"key-{number}", f"value-{number}"))
            if begin:
                _redis_call("BGREWRITEAOF")
                _within(
                    "the file is written anew",
                    lambda: "aof_rewrite_in_progress:0" in _redis_call("INFO", "persistence"),
                )
                _expect("last write", True, "aof_last_bgrewrite_status:ok" in _redis_call("INFO", "persistence"))
            server.kill()
            server.wait()
    with _running("/usr/bin/redis-server", *options):
        _within("Redis answers", _redis_up)
        _expect("keys", ":400", _redis_call("DBSIZE"))
        _expect("a value", "$9\r\nvalue-399", _redis_call("GET", "key-399"))


@program("PostgreSQL, killed and recovered")
def _postgres(files: int) -> None:
    del files
    os.chmod(".", 0o777)
    here, user = os.getcwd(), _POSTGRES_USER
    initdb = (
        f"{_POSTGRES}/initdb",
        "--pgdata=data",
        "--username=postgres",
        "--auth=trust",
        "--no-locale",
        "--encoding=UTF8",
    )
    _run(*initdb, user=user)
    connection = ("--host", here, "--username", "postgres")
    query = (f"{_POSTGRES}/psql", *connection, "--no-psqlrc", "--tuples-only", "--no-align", "--command")

    def up() -> bool:
        return not subprocess.run([f"{_POSTGRES}/pg_isready", "--quiet", "--host", here]).returncode

    server = (
        *(f"{_POSTGRES}/postgres", "-D", "data", "-k", here, "-c", "listen_addresses=", "-c", "shared_buffers=16MB"),
        *("-c", "max_connections=10"),
    )
    for again in (False, True):
        with _running(*server, user=user) as running:
            _within("PostgreSQL answers", up)
            if not again:
                _run(f"{_POSTGRES}/pgbench", *connection, "--initialize", "--quiet", "--scale=1", "postgres")
            said = "0" if not again else "100"
            _run(*query, "SELECT count(*) FROM pgbench_history", said=said)
            _run(f"{_POSTGRES}/pgbench", *connection, "--no-vacuum", "--client=2", "--transactions=50", "postgres")
            sums = "SELECT (SELECT sum(delta) FROM pgbench_history) = (SELECT sum(abalance) FROM pgbench_accounts)"
            _run(*query, sums, said="t")
            running.send_signal(signal.SIGQUIT if again else signal.SIGKILL)
            running.wait()
            # Those that it has begun see that it is gone, and go.
            _within("its processes have ended", _postgres_is_gone)


def _postgres_is_gone() -> bool:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read().startswith(b"postgres:"):
                    return False
        except OSError:
            continue
    return True


_IN_MODIFY, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x2, 0x40, 0x80, 0x100, 0x200


@program("a file watcher of Python")
def _watcher(files: int) -> None:
    del files
    libc = ctypes.CDLL(None, use_errno=True)
    watched = libc.inotify_init1(os.O_NONBLOCK)
    mask = _IN_MODIFY | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
    os.makedirs("tree/below")
    for name in (b"tree", b"tree/below"):
        if libc.inotify_add_watch(watched, name, mask) < 0:
            raise WrongError("no watch")
    changes = "echo a >tree/one; echo b >>tree/one; mv tree/one tree/below/two; rm tree/below/two; mkdir tree/new"
    _run("sh", "-c", changes)
    wanted = [
        *(
            (_IN_CREATE, "one"),
            (_IN_MODIFY, "one"),
            (_IN_MODIFY, "one"),
            (_IN_MOVED_FROM, "one"),
            (_IN_MOVED_TO, "two"),
        ),
        *((_IN_DELETE, "two"), (_IN_CREATE, "new")),
    ]
    seen: list[tuple[int, str]] = []
    while wanted[-1] not in seen and select.select([watched], [], [], 5)[0]:
        data = os.read(watched, 65536)
        while data:
            _, events, _, length = struct.unpack_from("iIII", data)
            seen.append((events & 0xFFF, data[16 : 16 + length].rstrip(b"\0").decode()))
            data = data[16 + length :]
    os.close(watched)
    # Two writes that nobody has read about in between may be told as one.
    distinct = [event for number, event in enumerate(seen) if not number or event != seen[number - 1]]
    wanted = [event for number, event in enumerate(wanted) if not number or event != wanted[number - 1]]
    _expect("events", wanted, distinct)


_NODE_WATCHER = """
const fs = require("fs"), seen = new Set();
const end = (status) => { console.log([...seen].sort().join(" ")); process.exit(status); };
fs.mkdirSync("watched/below", {recursive: true});
fs.watch("watched", {recursive: true}, (event, name) => { seen.add(name); if (seen.has("below/two")) end(0); });
setTimeout(() => fs.writeFileSync("watched/one", "1"), 1000);
setTimeout(() => fs.renameSync("watched/one", "watched/below/two"), 4000);
setTimeout(() => end(1), 30000);
"""


@program("a file watcher of Node")
def _node(files: int) -> None:
    del files
    _run("node", "-e", _NODE_WATCHER, said="below/two one")


def main(directory: str, files: str, *names: str) -> None:
    found: dict[str, object] = {}
    took: dict[str, float] = {}
    for index, (name, function) in enumerate(PROGRAMS.items()):
        if names and name not in names:
            continue
        place = f"{directory}/program-{index}"
        os.makedirs(place)
        os.chmod(place, 0o777)
        os.chdir(place)
        begin = time.monotonic()
        try:
            function(int(files))
            found[name] = True
        except (WrongError, OSError, subprocess.TimeoutExpired) as error:
            found[name] = str(error)
        took[name] = round(time.monotonic() - begin, 1)
    told({"found": found, "seconds": took})


if __name__ == "__main__":
    main(*sys.argv[1:])
