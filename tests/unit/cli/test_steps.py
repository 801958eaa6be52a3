from __future__ import annotations

import pytest

from kata.cli.steps import steps


def test_a_step_is_one_line_however_long_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    long = "waiting for process 5928 (kata image build --recipe minimal), which is changing /var/lib/kata/images"
    with steps() as progress:
        progress(long)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f" s  {long}")
