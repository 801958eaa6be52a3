"""A guest that opens files without end, by root in a privileged container, past the guest's kernel and its limits:

    python3 -m support.filehoard 9p|fs COUNT

It says that it is ready, and begins when it reads a line. Then it takes a device over, as `virtqueue` does, opens the
top directory of what it serves as many times, and closes nothing. It prints a JSON object, and holds what it has until
it is killed: how many the server opened, and the errors that it answered the others with, each by its number.

Under emulation it is Python that takes the time, so 64 requests at a time lie there as they are, all but their numbers.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from array import array
from collections import Counter

from .virtqueue import HELLO, Device, Page, Queue, devices, stay_in_memory

#: Requests that go to the device at once; each, and its answer, has room for as many bytes.
_AT_ONCE, _ROOM = 64, 64
_ANSWER_S = 60.0
_NEXT, _WRITE = 1, 2
#: Each request begins at the second byte of its place: what follows the header of 9P, 7 bytes, is aligned then.
_BEGIN = 1
#: 9P2000.L: Tattach, Twalk, Tlopen and its answer, Rlerror; the fid of the tree itself, and none.
_TATTACH, _TWALK, _TLOPEN, _RLOPEN, _RLERROR = 104, 110, 12, 13, 7
_TREE, _NO_FID = 0, 0xFFFFFFFF
#: FUSE: of the tree itself.
_OPENDIR, _ROOT_NODE = 27, 1


class Batches(Queue):
    """A queue whose descriptors lead to 64 requests, and to room for their answers."""

    size, driver, device = 2 * _AT_ONCE, 2048, 2560

    def __init__(self) -> None:
        self._requests, self._answers = Page(), Page()
        self._chains: list[bytes] = []
        super().__init__()

    def put(self, *kinds: bytes) -> None:
        """Have 64 of each kind of request there."""
        step = _ROOM // len(kinds)
        self._requests.memory[:] = b"".join((bytes(_BEGIN) + kind).ljust(step, b"\0") for kind in kinds) * _AT_ONCE
        self._chains = [self._chain(step * number + _BEGIN, len(kind)) for number, kind in enumerate(kinds)]

    def _chain(self, offset: int, length: int) -> bytes:
        return b"".join(
            struct.pack("<QIHH", self._requests.address + place + offset, length, _NEXT, 2 * number + 1)
            + struct.pack("<QIHH", self._answers.address + place, _ROOM, _WRITE, 0)
            for number, place in enumerate(range(0, _AT_ONCE * _ROOM, _ROOM))
        )

    def number(self, offset: int, first: int) -> None:
        """Have the requests count from a number on, in the four bytes at an offset in their room."""
        counted = array("I", range(first, first + _AT_ONCE))
        memoryview(self._requests.memory).cast("I")[offset // 4 :: _ROOM // 4] = memoryview(counted)

    def ask(self, device: Device, queue: int, kind: int) -> bytes:
        """The answers to the 64 requests of a kind, which the device gets at once."""
        self.memory[: len(self._chains[kind])] = self._chains[kind]
        self.available(*range(0, 2 * _AT_ONCE, 2))
        device.notify(queue, self)
        deadline = time.monotonic() + _ANSWER_S
        while not self.answered():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer in {_ANSWER_S:.0f} s")
        return self._answers.memory[:]


def _of_9p(kind: int, body: str, *values: int) -> bytes:
    return struct.pack(f"<IBH{body}", 7 + struct.calcsize(f"<{body}"), kind, 1, *values)


def _errors(kind: str, answers: bytes) -> Counter[int]:
    """How often each error is in the answers; 0 is none."""
    # 9P's kind of message; the error of FUSE, of which this is the first byte.
    good = bytes([_RLOPEN if kind == "9p" else 0]) * _AT_ONCE
    if answers[4::_ROOM] == good:
        return Counter({0: _AT_ONCE})
    numbers = []
    for place in range(0, len(answers), _ROOM):
        _, of_fuse = struct.unpack_from("<Ii", answers, place)
        _, said, _, of_9p = struct.unpack_from("<IBHI", answers, place)
        numbers.append((of_9p if said == _RLERROR else 0) if kind == "9p" else -of_fuse)
    return Counter(numbers)


def main(kind: str, count: str) -> None:
    queue, others = Batches(), Queue()
    device = Device(devices(kind)[0])
    stay_in_memory()
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    number = 0 if kind == "9p" else 1
    device.reset({other: queue if other == number else others for other in range(number + 1)})
    hello: tuple[bytes, ...]
    steps: tuple[bytes, ...]
    counted: tuple[int, ...]
    if kind == "9p":
        hello = (HELLO["9p"], _of_9p(_TATTACH, "IIHHI", _TREE, _NO_FID, 0, 0, 0))
        steps = (_of_9p(_TWALK, "IIH", _TREE, 0, 0), _of_9p(_TLOPEN, "II", 0, os.O_RDONLY))
        counted = (_BEGIN + 11, _ROOM // 2 + _BEGIN + 7)
    else:
        hello = (HELLO["fs"],)
        steps = (struct.pack("<IIQQIIIIII", 48, _OPENDIR, 1, _ROOT_NODE, 0, 0, 1, 0, os.O_RDONLY, 0),)
        counted = ()
    queue.put(*hello)
    for step in range(len(hello)):
        queue.ask(device, number, step)
    queue.put(*steps)
    said: Counter[int] = Counter()
    for first in range(1, int(count) + 1, _AT_ONCE):
        for offset in counted:
            queue.number(offset, first)
        *_, last = [queue.ask(device, number, step) for step in range(len(steps))]
        said += _errors(kind, last)
    print(json.dumps({"held": said.pop(0, 0), "errors": said}), flush=True)  # noqa: T201
    while True:
        time.sleep(1000)


if __name__ == "__main__":
    main(*sys.argv[1:])
