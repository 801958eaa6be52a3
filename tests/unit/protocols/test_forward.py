from __future__ import annotations

import pytest

from kata.errors import InvalidArgument
from kata.protocols.forward import destination, parse_destination


@pytest.mark.parametrize("where", [("127.0.0.1", 1), ("::1", 65535), ("fd00::7", 80)])
def test_what_was_meant_arrives(where: tuple[str, int]) -> None:
    assert parse_destination(destination(*where)) == where


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"80",
        b"80 ::1\0",
        b"0 127.0.0.1",
        b"65536 127.0.0.1",
        b"-1 ::1",
        b"80 localhost",
        b"80 ::1%eth0",
        b"80 \xff",
        b"8" * 99,
    ],
)
def test_rubbish_is_refused(request_: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_destination(request_)
