from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from kata.errors import FailedPrecondition, NotFound
from kata.runtime.launch.timings import FILE_NAME, Phase, Timings, read


def test_phases_are_read_in_the_order_of_their_beginnings(tmp_path: Path) -> None:
    timings = Timings(tmp_path, time.monotonic())
    outer = time.monotonic()
    time.sleep(0.002)
    with timings.phase("inner", "c1"):
        time.sleep(0.01)
    timings.add("outer", outer)
    timings.moment("output", "c1")
    assert abs(read(tmp_path).began - time.time()) < 60
    phases = read(tmp_path).phases
    assert [(phase.name, phase.subject) for phase in phases] == [("outer", ""), ("inner", "c1"), ("output", "c1")]
    assert phases[1].length_ms >= 10
    assert phases[0].length_ms >= phases[1].length_ms
    assert phases[2].begin_ms >= phases[1].begin_ms + 10


def test_a_phase_that_fails_is_recorded(tmp_path: Path) -> None:
    timings = Timings(tmp_path, time.monotonic())
    with pytest.raises(FailedPrecondition), timings.phase("qemu"):
        raise FailedPrecondition("no")
    timings.write()
    assert [phase.name for phase in read(tmp_path).phases] == ["qemu"]


def test_a_sandbox_with_many_containers_stays_small(tmp_path: Path) -> None:
    timings = Timings(tmp_path, time.monotonic())
    for number in range(1000):
        timings.add("start", time.monotonic(), f"c{number}")
    timings.write()
    assert len(read(tmp_path).phases) == 256


def test_a_directory_that_is_gone_is_no_error(tmp_path: Path) -> None:
    Timings(tmp_path / "gone", time.monotonic()).moment("output")
    assert not (tmp_path / "gone").exists()


def test_no_sandbox(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="sandbox nobody does not exist"):
        read(tmp_path / "nobody")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"began": 1, "phases": 1}',
        '{"began": 1, "phases": [{"name": "x"}]}',
        "[" * 100_000,
        '{"phases": []}',
    ],
    ids=["empty", "list", "nothing", "number", "incomplete", "deep", "no beginning"],
)
def test_a_broken_file(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(FailedPrecondition, match="is corrupt"):
        read(tmp_path)


def test_the_file_has_what_the_reference_says(tmp_path: Path) -> None:
    timings = Timings(tmp_path, time.monotonic() - 1)
    timings.moment("first output", "c1")
    written = json.loads((tmp_path / FILE_NAME).read_text())["phases"]
    assert written == [{"name": "first output", "subject": "c1", "begin_ms": written[0]["begin_ms"], "length_ms": 0.0}]
    assert read(tmp_path).phases == (Phase(**written[0]),)
    assert written[0]["begin_ms"] >= 1000
