"""A guest that opens files without end, by root in a privileged container, past the guest's kernel and its limits:

    python3 -m support.filehoard 9p|fs COUNT

It says that it is ready, and begins when it reads a line. Then it takes a device over, as `virtqueue` does, opens the
top directory of what it serves as many times, and closes nothing. It prints a JSON object, and holds what it has until
it is killed: how many the server opened, and the errors that it answered the others with, each by its number.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable

from .virtqueue import HELLO, Device, Page, Queue, devices, stay_in_memory

#: As many requests as go to the device at a time; each, and its answer, has room for as many bytes.
_AT_ONCE, _ROOM = 64, 64
_ANSWER_S = 60.0
_NEXT, _WRITE = 1, 2
#: 9P2000.L: Rlerror; the tree's own file.
_RLERROR, _ROOT_FID = 7, 0
_OPENDIR = 27

Make = Callable[[int], bytes]


class Batches(Queue):
    """A queue whose descriptors always lead to the same requests and answers."""

    size, driver, device = 2 * _AT_ONCE, 2048, 2560

    def __init__(self) -> None:
        self._requests, self._answers = Page(), Page()
        super().__init__()

    def clear(self) -> None:
        super().clear()
        for number in range(_AT_ONCE):
            there, back = (page.address + number * _ROOM for page in (self._requests, self._answers))
            struct.pack_into("<QIHH", self.memory, 32 * number, there, _ROOM, _NEXT, 2 * number + 1)
            struct.pack_into("<QIHH", self.memory, 32 * number + 16, back, _ROOM, _WRITE, 0)

    def ask(self, device: Device, number: int, requests: list[bytes]) -> list[bytes]:
        """The answers to some requests, which the device gets at once."""
        self._requests.memory[:] = b"".join(request.ljust(_ROOM, b"\0") for request in requests).ljust(4096, b"\0")
        self.available(*range(0, 2 * len(requests), 2))
        device.notify(number, self)
        deadline = time.monotonic() + _ANSWER_S
        while not self.answered():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer in {_ANSWER_S:.0f} s")
        return [self._answers.memory[place : place + _ROOM] for place in range(0, _ROOM * len(requests), _ROOM)]


def _of_9p(kind: int, body: str, *values: int) -> bytes:
    return struct.pack(f"<IBH{body}", 7 + struct.calcsize(f"<{body}"), kind, 1, *values)


def _error_of_9p(answer: bytes) -> int:
    size, kind, _, number = struct.unpack_from("<IBHI", answer)
    return number if kind == _RLERROR or not size else 0


def _error_of_fuse(answer: bytes) -> int:
    return -int(struct.unpack_from("<Ii", answer)[1])


def main(kind: str, count: str) -> None:
    ways: dict[str, tuple[int, list[Make], list[Make], Callable[[bytes], int]]] = {
        # Tversion, Tattach; then for each Twalk to the same place, Tlopen.
        "9p": (
            0,
            [lambda _: HELLO["9p"], lambda _: _of_9p(104, "IIHHI", _ROOT_FID, 0xFFFFFFFF, 0, 0, 0)],
            [lambda fid: _of_9p(110, "IIH", _ROOT_FID, fid, 0), lambda fid: _of_9p(12, "II", fid, 0)],
            _error_of_9p,
        ),
        "fs": (
            1,
            [lambda _: HELLO["fs"]],
            [lambda number: struct.pack("<IIQQIIIIII", 48, _OPENDIR, number, 1, 0, 0, 1, 0, 0, 0)],
            _error_of_fuse,
        ),
    }
    number, hello, steps, error_of = ways[kind]
    queue, others = Batches(), Queue()
    device = Device(devices(kind)[0])
    stay_in_memory()
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    device.reset({other: queue if other == number else others for other in range(number + 1)})
    for make in hello:
        if error := error_of(queue.ask(device, number, [make(0)])[0]):
            raise OSError(error, "the server does not begin")
    said: Counter[int] = Counter()
    for begin in range(1, int(count) + 1, _AT_ONCE):
        batch = range(begin, min(begin + _AT_ONCE, int(count) + 1))
        *_, last = [queue.ask(device, number, [make(which) for which in batch]) for make in steps]
        said.update(map(error_of, last))
    print(json.dumps({"held": said.pop(0, 0), "errors": said}), flush=True)  # noqa: T201
    while True:
        time.sleep(1000)


if __name__ == "__main__":
    main(*sys.argv[1:])
