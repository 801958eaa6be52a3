"""Ids become parts of paths: what may be one."""

from __future__ import annotations

import pytest

from kata.errors import InvalidArgument
from kata.oci.ids import MAX_ID, validate_id


@pytest.mark.parametrize("good", ["a", "0", "web-0.pod_1", "A" * MAX_ID, "f" * 64, "a..b", "a-"])
def test_good(good: str) -> None:
    assert validate_id(good) == good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        ".",
        "..",
        "-rf",
        "_a",
        ".hidden",
        "a/b",
        "/",
        "../etc",
        "a\n",
        "a\0",
        "a b",
        "é",
        "A" * 300,
        "A" * (MAX_ID + 1),
    ],
    ids=ascii,
)
def test_bad(bad: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        validate_id(bad, "container id")
    assert error.value.message.startswith(("container id", "invalid container id"))
    assert error.value.message.isprintable()
    assert len(error.value.message) < 200


def test_longest_id_leaves_room_for_a_socket() -> None:
    assert len(f"/run/kata/{'a' * MAX_ID}/console.sock") < 108
