from __future__ import annotations

import pytest

from kata.agent.runtime import explain
from kata.errors import FailedPrecondition, Internal, KataError, NotFound, PermissionDenied


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        (
            "executable file `nope` not found in $PATH: No such file or directory",
            NotFound,
            'exec: "nope": executable file not found in $PATH',
        ),
        (
            "executable file `a\nb ` c` not found in $PATH",
            NotFound,
            'exec: "a\nb ` c": executable file not found in $PATH',
        ),
        ("open executable: Permission denied", PermissionDenied, "permission denied"),
        ("the container `x` is not running", FailedPrecondition, "crun exec: the container `x` is not running"),
        ("cannot fork: Cannot allocate memory", Internal, "crun exec failed with status 1: cannot fork"),
    ],
)
def test_what_crun_says(message: str, kind: type[KataError], text: str) -> None:
    error = explain("exec", 1, f"a warning before it\n{message}\n")
    assert type(error) is kind
    assert text in str(error)


@pytest.mark.parametrize("log", ["", "\n", "words\n", "executable file\n"])
def test_what_crun_does_not_say(log: str) -> None:
    error = explain("create", 137, log)
    assert type(error) is Internal
    assert "crun create failed with status 137" in str(error)
