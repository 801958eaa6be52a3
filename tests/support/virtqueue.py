"""Rubbish for the servers of the shared tree, by root in a privileged container, past the guest's kernel:

    python3 -m support.virtqueue 9p|fs ROUNDS SEED

It takes the devices over: resets them, and gives them queues in its own memory, which it fills with what no driver
sends: messages by chance, messages that are nearly right, and chains of descriptors that lead nowhere. It reaches a
device's registers by its configuration space (virtio 1.2, 4.1.4.9), as the kernel keeps the others to itself, and finds
its memory by /proc/self/pagemap. The files of the container are gone from then on. It prints a JSON object at the end:
how many rounds there were, how many were answered, and how often a device gave up. Over 9p it cannot even exit then:
the kernel waits for the server to close its files.
"""

from __future__ import annotations

import ctypes
import glob
import json
import mmap
import os
import random
import struct
import sys
import time

#: Device ids (virtio 1.2, 5), and the queues that are fed.
_DEVICES = {"9p": (9, (0,)), "fs": (26, (0, 1))}
_ACKNOWLEDGE, _DRIVER, _DRIVER_OK, _FEATURES_OK, _NEEDS_RESET = 1, 2, 4, 8, 64
#: Capabilities of the device: registers, notifications, the window in the configuration space.
_COMMON, _NOTIFY, _WINDOW = 1, 2, 5
#: Offsets in the registers (4.1.4.3).
_DRIVER_FEATURE_SELECT, _DRIVER_FEATURE, _STATUS, _QUEUE_SELECT, _QUEUE_SIZE = 8, 12, 20, 22, 24
_QUEUE_ENABLE, _QUEUE_NOTIFY_OFF, _QUEUE_DESC, _QUEUE_DRIVER, _QUEUE_DEVICE = 28, 30, 32, 40, 48
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_PAGE = 4096
#: Of mlockall(2).
_MCL_CURRENT, _MCL_FUTURE = 1, 2
_ANSWER_S = 0.02
#: Messages of 9P2000.L, as far as a server knows them; FUSE's have numbers from 1.
_9P_TYPES = (
    *(8, 12, 14, 16, 18, 20, 22, 24, 26, 30, 32, 40, 50, 52, 54, 70, 72, 74, 76),
    *(100, 102, 104, 108, 110, 112, 114, 116, 118, 120, 122, 124, 126),
)
#: What a driver says first: Tversion, FUSE_INIT.
HELLO = {
    "9p": struct.pack("<IBHIH", 21, 100, 0xFFFF, 8192, 8) + b"9P2000.L",
    "fs": struct.pack("<IIQQIIIIIIII", 56, 26, 1, 0, 0, 0, 1, 0, 7, 36, 65536, 0),
}


class Device:
    """The device, by the window in its configuration space."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(f"{path}/config", os.O_RDWR)
        self._places: dict[int, tuple[int, int]] = {}
        self._multiplier = 0
        place = os.pread(self._fd, 1, 0x34)[0]
        while place:
            kind, following, _, what, bar = struct.unpack("<BBBBB", os.pread(self._fd, 5, place))
            if kind == 9:  # vendor-specific
                offset = struct.unpack("<I", os.pread(self._fd, 4, place + 8))[0]
                self._places.setdefault(what, (bar, offset))
                if what == _NOTIFY:
                    self._multiplier = struct.unpack("<I", os.pread(self._fd, 4, place + 16))[0]
                if what == _WINDOW:
                    self._window = place
            place = following

    def _point(self, what: int, offset: int, length: int) -> None:
        bar, begin = self._places[what]
        os.pwrite(self._fd, bytes([bar]), self._window + 4)
        os.pwrite(self._fd, struct.pack("<I", begin + offset), self._window + 8)
        os.pwrite(self._fd, struct.pack("<I", length), self._window + 12)

    def read(self, offset: int, length: int, what: int = _COMMON) -> int:
        self._point(what, offset, length)
        return int.from_bytes(os.pread(self._fd, length, self._window + 16), "little")

    def write(self, offset: int, length: int, value: int, what: int = _COMMON) -> None:
        self._point(what, offset, length)
        os.pwrite(self._fd, value.to_bytes(length, "little"), self._window + 16)

    def reset(self, queues: dict[int, Queue]) -> None:
        """Begin anew, with these queues."""
        self.write(_STATUS, 1, 0)
        while self.read(_STATUS, 1):
            time.sleep(0.001)
        self.write(_STATUS, 1, _ACKNOWLEDGE | _DRIVER)
        self.write(_DRIVER_FEATURE_SELECT, 4, 0)
        self.write(_DRIVER_FEATURE, 4, 0)
        self.write(_DRIVER_FEATURE_SELECT, 4, 1)
        self.write(_DRIVER_FEATURE, 4, 1)  # VIRTIO_F_VERSION_1
        self.write(_STATUS, 1, _ACKNOWLEDGE | _DRIVER | _FEATURES_OK)
        for number, queue in queues.items():
            queue.clear()
            self.write(_QUEUE_SELECT, 2, number)
            self.write(_QUEUE_SIZE, 2, queue.size)
            for offset, part in ((_QUEUE_DESC, 0), (_QUEUE_DRIVER, queue.driver), (_QUEUE_DEVICE, queue.device)):
                self.write(offset, 4, (queue.address + part) & 0xFFFFFFFF)
                self.write(offset + 4, 4, (queue.address + part) >> 32)
            queue.notify = self.read(_QUEUE_NOTIFY_OFF, 2) * self._multiplier
            self.write(_QUEUE_ENABLE, 2, 1)
        self.write(_STATUS, 1, _ACKNOWLEDGE | _DRIVER | _FEATURES_OK | _DRIVER_OK)

    def gave_up(self) -> bool:
        return bool(self.read(_STATUS, 1) & _NEEDS_RESET)

    def notify(self, number: int, queue: Queue) -> None:
        self.write(queue.notify, 2, number, _NOTIFY)


class Page:
    """A page of memory that the device can be told the address of."""

    def __init__(self) -> None:
        # Shared: what is anonymous and private may move with a fork.
        self.memory = mmap.mmap(-1, _PAGE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
        self.memory[:] = bytes(_PAGE)
        self.address = self._physical()

    def _physical(self) -> int:
        virtual = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        ctypes.CDLL(None).mlock(ctypes.c_void_p(virtual), ctypes.c_size_t(_PAGE))
        with open("/proc/self/pagemap", "rb") as pagemap:
            pagemap.seek(virtual // _PAGE * 8)
            (entry,) = struct.unpack("<Q", pagemap.read(8))
        frame = int(entry & ((1 << 55) - 1))
        if not frame:
            raise PermissionError("no address of the memory: needs CAP_SYS_ADMIN")
        return frame * _PAGE


class Queue(Page):
    """A split queue in one page: descriptors, the driver's ring, the device's ring.

    Attributes:
        size: how many descriptors there are.
        driver, device: offsets of the rings.
        notify: offset of what tells the device that there is something.
    """

    size, driver, device = 16, 1024, 2048

    def __init__(self) -> None:
        super().__init__()
        self.notify = 0
        self._offered = 0

    def clear(self) -> None:
        self.memory[:] = bytes(_PAGE)
        self._offered = 0

    def offer(self, chain: list[tuple[int, int, int, int]], head: int = 0) -> None:
        """Offer a chain of descriptors: address, length, flags, the next one's number."""
        for number, (address, length, flags, following) in enumerate(chain):
            descriptor = struct.pack("<QIHH", address & (2**64 - 1), length, flags, following)
            self.memory[16 * number : 16 * number + 16] = descriptor
        self.available(head)

    def available(self, *heads: int) -> None:
        """Offer the chains that begin with these descriptors."""
        for head in heads:
            struct.pack_into("<H", self.memory, self.driver + 4 + 2 * (self._offered % self.size), head)
            self._offered = (self._offered + 1) & 0xFFFF
        struct.pack_into("<H", self.memory, self.driver + 2, self._offered)

    def answered(self) -> bool:
        return bool(struct.unpack_from("<H", self.memory, self.device + 2)[0] == self._offered)


def _number(chance: random.Random) -> int:
    return chance.choice([0, 1, 2, 3, 4, 7, 255, 4095, 65535, 1 << 31, (1 << 32) - 1, chance.getrandbits(32)])


def _name(chance: random.Random) -> bytes:
    return chance.choice([b"", b".", b"..", b"/", b"../../etc/passwd", b"a", b"a\0b", b"n" * 300, chance.randbytes(9)])


def _message_of_9p(chance: random.Random) -> bytes:
    body = b""
    for _ in range(chance.randrange(8)):
        name = _name(chance)
        body += chance.choice(
            [
                struct.pack("<I", _number(chance)),
                struct.pack("<Q", _number(chance) << chance.randrange(33)),
                struct.pack("<H", len(name)) + name,
                struct.pack("<H", _number(chance) & 0xFFFF) + name,
            ]
        )
    kind = chance.choice(_9P_TYPES) if chance.random() < 0.9 else chance.randrange(256)
    size = 7 + len(body) if chance.random() < 0.8 else _number(chance)
    return struct.pack("<IBH", size & 0xFFFFFFFF, kind, chance.getrandbits(16)) + body


def _message_of_fuse(chance: random.Random) -> bytes:
    body = chance.randbytes(chance.choice([0, 1, 8, 16, 40, 104])) + (_name(chance) + b"\0") * chance.randrange(3)
    opcode = chance.randrange(1, 54) if chance.random() < 0.9 else _number(chance)
    size = 40 + len(body) if chance.random() < 0.8 else _number(chance)
    node = chance.choice([0, 1, 2, _number(chance)])
    return (
        struct.pack("<IIQQIIII", size & 0xFFFFFFFF, opcode & 0xFFFFFFFF, chance.getrandbits(64), node, 0, 0, 1, 0)
        + body
    )


def _chain(chance: random.Random, message: Page, length: int, answer: Page) -> list[tuple[int, int, int, int]]:
    """What leads to a message and to room for an answer; now and then not quite."""
    out, back = (message.address, length, _NEXT, 1), (answer.address, _PAGE, _WRITE, 0)
    wrong: list[list[tuple[int, int, int, int]]] = [
        [(message.address, length, 0, 0)],
        [back],
        [(answer.address, _PAGE, _WRITE | _NEXT, 1), (message.address, length, 0, 0)],
        [out, (answer.address, _number(chance), _WRITE, 0)],
        [(message.address, _number(chance), _NEXT, 1), back],
        [(_number(chance) << chance.randrange(33), length, _NEXT, 1), back],
        [out, (_number(chance) << chance.randrange(33), _PAGE, _WRITE, 0)],
        [out, (answer.address, 7, _WRITE, 0)],
        [out, (answer.address, 0, _WRITE, 0)],
        [(message.address, length, _NEXT, 0)],
        [(message.address, length, _NEXT, 999)],
        [(message.address, 48, _INDIRECT, 0)],
        [(message.address, 3, _NEXT, 1), (message.address + 3, max(length - 3, 0), _NEXT, 2), back],
    ]
    return chance.choice(wrong) if chance.random() < 0.3 else [out, back]


class Feeder:
    """One device, and what it is fed.

    Attributes:
        rounds, answered, gave_up: how many there were.
    """

    def __init__(self, path: str, kind: str, chance: random.Random) -> None:
        self.rounds = self.answered = self.gave_up = 0
        self._device = Device(path)
        self._numbers = _DEVICES[kind][1]
        self._queues = {number: Queue() for number in self._numbers}
        self._message, self._answer = Page(), Page()
        self._chance = chance
        self._make = _message_of_9p if kind == "9p" else _message_of_fuse
        self._hello = HELLO[kind]
        self._fresh = True

    def feed(self) -> None:
        """One message; one that is right to a device that was reset. What is not answered resets it."""
        fresh, chance = self._fresh, self._chance
        if fresh:
            self._device.reset(self._queues)
        number = self._numbers[-1] if fresh else chance.choice(self._numbers)
        content = (self._hello if fresh else self._make(chance))[:_PAGE]
        self._message.memory[: len(content)] = content
        right = [(self._message.address, len(content), _NEXT, 1), (self._answer.address, _PAGE, _WRITE, 0)]
        chain = right if fresh else _chain(chance, self._message, len(content), self._answer)
        queue = self._queues[number]
        queue.offer(chain, 0 if fresh or chance.random() < 0.95 else 999)
        self._device.notify(number, queue)
        deadline = time.monotonic() + _ANSWER_S
        while not queue.answered() and time.monotonic() < deadline:
            time.sleep(0.0005)
        self._fresh = not queue.answered()
        self.rounds += 1
        self.answered += not self._fresh
        self.gave_up += self._fresh and self._device.gave_up()


def devices(kind: str) -> list[str]:
    """The PCI devices of a kind, by their directories in sysfs."""
    return [
        os.path.dirname(os.path.realpath(os.path.dirname(name)))
        for name in glob.glob("/sys/bus/virtio/devices/*/device")
        if int(open(name).read(), 16) == _DEVICES[kind][0]
    ]


def stay_in_memory() -> None:
    """What is not in memory when the files are gone never comes: the program, its libraries."""
    if ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT | _MCL_FUTURE):
        raise OSError(ctypes.get_errno(), "mlockall")


def main(kind: str, rounds: str, seed: str) -> None:
    chance = random.Random(int(seed))
    feeders = [Feeder(path, kind, chance) for path in devices(kind)]
    stay_in_memory()
    for _ in range(int(rounds)):
        for feeder in feeders:
            feeder.feed()
    print(  # noqa: T201
        json.dumps(
            {
                "devices": len(feeders),
                "rounds": sum(feeder.rounds for feeder in feeders),
                "answered": sum(feeder.answered for feeder in feeders),
                "gave up": sum(feeder.gave_up for feeder in feeders),
            }
        ),
        flush=True,
    )
    # The files of the interpreter are gone.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
