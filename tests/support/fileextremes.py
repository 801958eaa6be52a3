"""Files in great numbers and of great sizes, by a Python in a container (see `fileprograms`):

    python3 -m support.fileextremes DIRECTORY FILES

Files of its first check may be in `DIRECTORY/check-0` before. It prints a JSON object: each check, and true or why it
failed.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
from collections.abc import Callable

from .fileprograms import told, write

CHECKS: dict[str, Callable[[int], bool]] = {}
_PAGE = 4096


def check(name: str) -> Callable[[Callable[[int], bool]], Callable[[int], bool]]:
    def enter(function: Callable[[int], bool]) -> Callable[[int], bool]:
        CHECKS[name] = function
        return function

    return enter


def names_of(files: int) -> list[str]:
    """The files of the directory of many."""
    return [f"{number:06}-{'ä' * (number % 100)}" for number in range(files)]


@check("a directory of many files")
def _many(files: int) -> bool:
    """All are listed once, and found; a tenth of them go while they are listed. Those that are not there are made."""
    names = names_of(files)
    made = set(names).difference(os.listdir())
    for name in made:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    listed = os.listdir()
    found = all(os.stat(name).st_size == 0 for name in names[:: max(1, files // 1000)])
    seen, gone = [], set()
    with os.scandir() as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number % 10 == 0:
                os.unlink(entry.name)
                gone.add(entry.name)
    left = set(os.listdir())
    return sorted(listed) == sorted(seen) == sorted(names) and found and left == set(names) - gone


@check("directories in each other and beside each other")
def _directories(files: int) -> bool:
    count = files // 20
    for number in range(count):
        os.makedirs(f"{number % 10}/{number % 100}/{number}")
    # os.walk begins with this one.
    walked = sum(1 for _ in os.walk(".")) - 1
    return walked == count + min(count, 10) + min(count, 100)


@check("a sparse file beyond 4 GiB: written, mapped, direct, cut")
def _beyond(_: int) -> bool:
    places = [number << 30 for number in (0, 3, 4, 5, 9)]
    fd = os.open("sparse", os.O_RDWR | os.O_CREAT)
    direct = os.open("sparse", os.O_RDWR | os.O_DIRECT)
    try:
        for number, place in enumerate(places):
            os.pwrite(fd, bytes([number + 1]) * _PAGE, place)
        with mmap.mmap(-1, _PAGE) as page:
            page[:] = b"d" * _PAGE
            os.pwritev(direct, [page], (6 << 30) + _PAGE)
            os.preadv(direct, [page], 4 << 30)
            read_directly = page[:] == bytes([3]) * _PAGE
        with mmap.mmap(fd, _PAGE, offset=(5 << 30) + _PAGE) as memory:
            memory[:] = b"m" * _PAGE
            memory.flush()
        whole = [os.pread(fd, _PAGE, place) for place in places] == [bytes([n + 1]) * _PAGE for n in range(len(places))]
        between = os.pread(fd, 2 * _PAGE, 6 << 30) == bytes(_PAGE) + b"d" * _PAGE
        mapped = os.pread(fd, 2 * _PAGE, 5 << 30) == bytes([4]) * _PAGE + b"m" * _PAGE
        os.ftruncate(fd, (4 << 30) + 5)
        os.ftruncate(fd, 6 << 30)
        cut = os.pread(fd, 10, 4 << 30) == bytes([3]) * 5 + bytes(5)
        info = os.fstat(fd)
        return (
            *(read_directly, whole, between, mapped, cut, info.st_size == 6 << 30, info.st_blocks * 512 < 1 << 20),
        ) == (True,) * 7
    finally:
        os.close(direct)
        os.close(fd)


@check("one file written in every way, at random")
def _mixed(_: int) -> bool:
    """write, pwrite, mapping, direct I/O, truncate: what is read in every way is what was written last."""
    chance = random.Random(20261130)
    size = 64 * _PAGE
    model = bytearray(size)
    fd = os.open(write("mixed", bytes(size)), os.O_RDWR)
    direct = os.open("mixed", os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, _PAGE)
    try:
        with mmap.mmap(fd, size) as memory:
            for _step in range(300):
                way = chance.choice(["write", "map", "direct", "read", "read direct", "cut"])
                place, length = chance.randrange(size - 3 * _PAGE), chance.randrange(1, 3 * _PAGE)
                data = chance.randbytes(length)
                whole_page = place // _PAGE * _PAGE
                if way == "write":
                    os.pwrite(fd, data, place)
                    model[place : place + length] = data
                elif way == "map":
                    memory[place : place + length] = data
                    memory.flush()
                    model[place : place + length] = data
                elif way == "direct":
                    page[:] = (data * _PAGE)[:_PAGE]
                    os.pwritev(direct, [page], whole_page)
                    model[whole_page : whole_page + _PAGE] = page[:]
                elif way == "cut":
                    os.ftruncate(fd, place)
                    os.ftruncate(fd, size)
                    model[place:] = bytes(size - place)
                elif way == "read":
                    if os.pread(fd, length, place) != model[place : place + length]:
                        return False
                else:
                    os.fsync(fd)
                    os.preadv(direct, [page], whole_page)
                    if page[:] != model[whole_page : whole_page + _PAGE]:
                        return False
            return memory[:] == model and os.pread(fd, size, 0) == model
    finally:
        os.close(direct)
        os.close(fd)


def main(directory: str, files: str) -> None:
    found: dict[str, object] = {}
    for index, (name, function) in enumerate(CHECKS.items()):
        place = f"{directory}/check-{index}"
        os.makedirs(place, exist_ok=True)
        os.chdir(place)
        try:
            found[name] = True if function(int(files)) else "is not so"
        except OSError as error:
            found[name] = error.strerror
    told(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
