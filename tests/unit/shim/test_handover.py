"""The message to a process in standby, and `start`'s side of handing over, against peers that behave and others."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kata.errors import Unavailable
from kata.runtime.ledger.journal import Ledger
from kata.shim import handover, standby
from kata.shim.handover import ACCEPTED, PREFIX, READY, SOCKET, hand_over
from kata.shim.params import ShimParams

MESSAGE = ShimParams(
    sandbox_id="box",
    namespace="default",
    events_address="/run/containerd/c.ttrpc",
    options=b"\0\xff\x01",
    debug=True,
    bundle="/run/büro\udcff",
    begun=12.345678901,
    environment={"PATH": "/bin", "EMPTY": "", "WITH": "a=b\nc"},
)


def test_a_message_arrives_as_it_was() -> None:
    decoded = ShimParams.decode(MESSAGE.encode())
    assert vars(decoded) == vars(MESSAGE)


@pytest.mark.parametrize("data", [b"", b"box", b"box\0", b"a\0b\0c\0zz\0\0/\0\x31\0", b"a\0b\0c\0\0\0/\0soon\0"])
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"message|hex|float"):
        ShimParams.decode(data)


@contextmanager
def standing_by(root: Path, behave: Callable[[socket.socket], None]) -> Iterator[None]:
    """A process in standby, played by a thread."""
    directory = root / f"{PREFIX}1"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(directory / SOCKET))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                behave(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(10)


def offer(root: Path) -> int:
    first, second = os.pipe()
    try:
        return hand_over(MESSAGE, (first, second), str(root))
    finally:
        os.close(first)
        os.close(second)


def test_a_sandbox_is_handed_over(tmp_path: Path) -> None:
    got: list[object] = []

    def behave(peer: socket.socket) -> None:
        peer.send(READY)
        data, fds, _, _ = socket.recv_fds(peer, handover.MAX_MESSAGE, 4)
        got.extend((ShimParams.decode(data).sandbox_id, len(fds)))
        os.close(fds[0])
        os.close(fds[1])
        peer.send(ACCEPTED)

    with standing_by(tmp_path, behave):
        assert offer(tmp_path) == os.getpid()
    assert got == ["box", 2]


def test_nobody_is_in_standby(tmp_path: Path) -> None:
    assert offer(tmp_path) == 0
    assert offer(tmp_path / "nowhere") == 0
    (tmp_path / f"{PREFIX}1").mkdir()
    (tmp_path / "box").mkdir()
    assert offer(tmp_path) == 0


def test_a_refusal_is_no_error(tmp_path: Path) -> None:
    with standing_by(tmp_path, lambda peer: None):
        assert offer(tmp_path) == 0


def test_an_end_after_the_message_is_a_refusal(tmp_path: Path) -> None:
    def behave(peer: socket.socket) -> None:
        peer.send(READY)
        peer.recv(handover.MAX_MESSAGE)

    with standing_by(tmp_path, behave):
        assert offer(tmp_path) == 0


def test_who_is_not_ready_is_not_waited_for(tmp_path: Path) -> None:
    done = threading.Event()

    def behave(peer: socket.socket) -> None:
        done.wait(10)

    with standing_by(tmp_path, behave):
        assert offer(tmp_path) == 0
        done.set()


def test_two_shims_for_one_sandbox_there_are_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_ACCEPTED_TIMEOUT_S", 0.1)
    done = threading.Event()

    def behave(peer: socket.socket) -> None:
        peer.send(READY)
        peer.recv(handover.MAX_MESSAGE)
        done.wait(10)

    with standing_by(tmp_path, behave):
        with pytest.raises(Unavailable, match="does not answer"):
            offer(tmp_path)
        done.set()


@pytest.mark.root
def test_what_fails_after_the_acceptance_reaches_containerds_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`start` prints the address then, and nobody reads the pool's own log for a sandbox."""
    happened: list[str] = []
    received: list[int] = []
    receive = socket.recv_fds

    def remember(*arguments: int) -> object:
        whole = receive(*arguments)  # type: ignore[arg-type]
        received.extend(whole[1])
        return whole

    monkeypatch.setattr(standby, "become_shim", lambda params: happened.append(f"log of {params.sandbox_id}"))

    def fail(*_: object) -> None:
        raise OSError("no ledger")

    monkeypatch.setattr(socket, "recv_fds", remember)
    monkeypatch.setattr(Ledger, "adopt", fail)
    monkeypatch.setattr(standby, "surroundings", lambda pid: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    first, second = os.pipe()
    with ours, theirs, open(first, "rb"), open(second, "wb"):
        socket.send_fds(theirs, [MESSAGE.encode()], [first, second])
        before = dict(os.environ)
        try:
            with pytest.raises(OSError, match="no ledger"):
                standby._take(ours, None)
        finally:
            os.environ.clear()
            os.environ.update(before)
            for fd in received:
                os.close(fd)
    assert happened == ["log of box"]


def test_an_environment_that_is_too_large_goes_without(tmp_path: Path) -> None:
    large = ShimParams(**{**vars(MESSAGE), "environment": {"X": "x" * handover.MAX_MESSAGE}})
    assert hand_over(large, (0, 1), str(tmp_path)) == 0
