"""What has ended servers of files, again and again, by a Python in a container:

    python3 filestress.py DIRECTORY ROUNDS

prints a JSON object: what went wrong, by kind, and how often. It needs only Python's standard library.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections import Counter

wrong: Counter[str] = Counter()


def groups_of_root(rounds: int) -> None:
    """Root creates files whose group is not its own: in a directory with the set-group-ID bit, and as a group."""
    os.mkdir("groups")
    os.chown("groups", 0, 50)
    os.chmod("groups", 0o2775)
    for number in range(rounds):
        os.mkdir(f"groups/directory-{number}")
        with open(f"groups/file-{number}", "w") as file:
            file.write("x")
        os.mkfifo(f"groups/fifo-{number}")
        os.symlink("nowhere", f"groups/link-{number}")
        os.setegid(51)
        os.mkdir(f"as-51-{number}")
        os.setegid(0)
        os.seteuid(1000)
        try:
            os.mkdir(f"groups/not-mine-{number}")
            wrong["a directory in one of others"] += 1
        except PermissionError:
            pass
        os.seteuid(0)
        for name in (f"groups/{kind}-{number}" for kind in ("directory", "file", "fifo", "link")):
            info = os.lstat(name)
            if (info.st_uid, info.st_gid) != (0, 50):
                wrong["owner in a directory with the set-group-ID bit"] += 1
        if not os.stat(f"groups/directory-{number}").st_mode & stat.S_ISGID:
            wrong["set-group-ID bit of a new directory"] += 1
        if os.stat(f"as-51-{number}").st_gid != 51:
            wrong["group of a new directory"] += 1


def same_name_at_once(rounds: int) -> None:
    """Two processes create a file of one name at the same moment."""
    turns = [os.pipe() for _ in range(2)]
    done_read, done_write = os.pipe()
    children = []
    for turn, _ in turns:
        pid = os.fork()
        if not pid:
            try:
                os._exit(_create(turn, done_write, rounds))
            finally:
                os._exit(1)
        children.append(pid)
    for _ in range(rounds):
        for _, start in turns:
            os.write(start, b"x")
        said = b""
        while len(said) < 2:
            said += os.read(done_read, 2 - len(said))
        for number in said:
            if number:
                wrong[f"{errno.errorcode[number]} for a name that another creates"] += 1
    for pid in children:
        os.waitpid(pid, 0)


def _create(turn: int, done: int, rounds: int) -> int:
    for number in range(rounds):
        os.read(turn, 1)
        said = 0
        try:
            os.close(os.open(f"same-{number}", os.O_CREAT | os.O_RDWR, 0o644))
        except OSError as error:
            said = error.errno or 255
        os.write(done, bytes([said]))
    return 0


def main(directory: str, rounds: int) -> None:
    os.makedirs(directory)
    os.chdir(directory)
    os.umask(0o022)
    groups_of_root(rounds)
    same_name_at_once(rounds)
    sys.stdout.write(json.dumps(wrong))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
