"""The list of a container's processes, which a guest may make up."""

from __future__ import annotations

import pytest

from kata.errors import Unavailable
from kata.protocols.processes import MAX_PID, encode_list, parse_list


def test_there_and_back() -> None:
    listed = [(1, ""), (7, "e1"), (MAX_PID, None)]
    assert parse_list(encode_list(listed)) == listed
    assert parse_list(encode_list([])) == []


@pytest.mark.parametrize("response", [b"0\n", b"-1\n", b"x\n", b"\n", b"4194305\n", b"\xff 1\n", b"1e3\n", b"9" * 5000])
def test_what_is_none(response: bytes) -> None:
    with pytest.raises(Unavailable, match="the guest's list of processes"):
        parse_list(response)
