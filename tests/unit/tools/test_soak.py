"""The soak: what is planned, when something counts as growing, and a report whatever happens."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kata.errors import FailedPrecondition
from tests.support.killing import ALL_THREE, ANY, CONTAINERD, PROGRAMS
from tools.soak import __main__ as command
from tools.soak import figures, report
from tools.soak.figures import QUANTITIES, WARM_UP, Outcome, growing, slope
from tools.soak.plan import RESTART, STEPS, Round, plan
from tools.soak.report import Soak, drawing, markdown

NAME = "shim: descriptors"


def outcome(number: int, value: float = 20.0, **changes: object) -> Outcome:
    values: dict[str, object] = {"kills": 2, "pressure": "-", "figures": {NAME: value}}
    return Outcome(number=number, seconds=number * 4.0, **(values | changes))  # type: ignore[arg-type]


class TestPlan:
    def test_a_seed_is_a_soak(self) -> None:
        assert [plan(7, number) for number in range(1, 50)] == [plan(7, number) for number in range(1, 50)]
        assert plan(7, 1) != plan(8, 1)

    def test_an_hour_has_all_of_it(self) -> None:
        rounds = [plan(1, number) for number in range(1, 500)]
        kills = [kill for one in rounds for kill in one.kills]
        assert {kill.victim for kill in kills} == {*PROGRAMS, ALL_THREE, ANY, CONTAINERD, RESTART}
        assert {step for one in rounds for life in one.lives for step in life} == set(STEPS)
        assert len(kills) > 2 * 500
        assert {one.pressure.split()[0] for one in rounds} == {"memory", "disk", "-"}
        assert 20 < sum(one.peaceful for one in rounds) < 80
        assert all(first.after_s <= second.after_s for one in rounds for first, second in pairwise(one.kills))

    def test_nothing_is_short_where_all_has_to_succeed(self) -> None:
        rounds = [plan(3, number) for number in range(200)]
        assert {one.pressure for one in rounds if one.peaceful} == {"-"}


class TestSlope:
    def test_too_few_to_tell(self) -> None:
        assert slope([(number, 1.0) for number in range(WARM_UP + figures.ENOUGH)]) is None

    def test_of_a_line(self) -> None:
        line = slope([(number, 3 + number / 10) for number in range(100)])
        assert line is not None
        assert line.per_100 == pytest.approx(10)
        assert line.error == pytest.approx(0, abs=1e-6)

    def test_what_grows_is_told(self) -> None:
        leaks = [outcome(number, 20 + number / 10) for number in range(1, 100)]
        assert growing(leaks) == ["shim: descriptors: grows by 10.00 in 100 rounds; the bound is 1"]

    def test_noise_and_what_is_cached_first_are_not(self) -> None:
        choice = random.Random(1)
        noisy = [outcome(number, 20 + choice.choice((0, 0, 3))) for number in range(1, 100)]
        assert growing(noisy) == []
        assert growing([outcome(number, min(number, WARM_UP)) for number in range(1, 100)]) == []


class TestReport:
    def soak(self, *outcomes: Outcome, **changes: object) -> Soak:
        values: dict[str, object] = {"seed": 5, "minutes": 60, "begun": "2026-01-01", "stopped": ""}
        return Soak(outcomes=outcomes, **(values | changes))  # type: ignore[arg-type]

    def test_what_was_left_and_what_grew(self) -> None:
        told = self.soak(
            *(outcome(number, 20 + number) for number in range(1, 60)),
            outcome(60, problems=("left behind:\n  process 5: <qemu> | x",), ended=("exec: gone",)),
        )
        said = markdown(told)
        assert len(told.failures) == 2
        assert "- round 60: left behind:   process 5: &lt;qemu> \\| x" in said
        assert "- shim: descriptors: grows by" in said
        assert "| kills | 120 (500 are usual in this time) |" in said
        assert "| 1 | exec: gone |" in said
        assert 'class="bad"' in drawing(told)

    def test_all_is_well(self) -> None:
        told = self.soak(*(outcome(number) for number in range(1, 60)))
        assert told.failures == []
        assert "nothing stays, nothing grows" in markdown(told)

    def test_the_drawing_has_a_panel_for_each_quantity(self) -> None:
        both = {NAME: 20.0, "host: cgroups": 0.0}
        root = ElementTree.fromstring(drawing(self.soak(*(outcome(n, figures=both) for n in range(1, 9)))))
        texts = [element.text for element in root.iter() if element.text]
        assert [name for name in QUANTITIES if name in texts] == [NAME, "host: cgroups"]

    def test_before_the_first_round_is_over(self) -> None:
        assert "0 rounds in 0.0 of 60 minutes, stopped early: by a signal" in markdown(self.soak(stopped="by a signal"))
        ElementTree.fromstring(drawing(self.soak()))


class TestCommand:
    @pytest.fixture(autouse=True)
    def _here(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(command, "_SCRATCH", str(tmp_path))
        monkeypatch.setattr("tools.soak.__main__.signal.signal", lambda *_: None)
        monkeypatch.setattr(command, "unshare", lambda flags: None)
        monkeypatch.setattr("tools.soak.__main__.mount.set_propagation", lambda target, flags: None)

    @pytest.mark.parametrize(
        ("error", "said"), [(KeyboardInterrupt(), "by a signal"), (FailedPrecondition("no disk"), "no disk")]
    )
    def test_a_report_is_written_whatever_happens(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, said: str
    ) -> None:
        class Stage:
            def __enter__(self) -> Stage:
                return self

            def __exit__(self, *_: object) -> None:
                return

            def run(self, planned: Round, begun: float) -> Outcome:
                if planned.number == 3:
                    raise error
                return outcome(planned.number)

        monkeypatch.setattr(command, "stage", lambda scratch, seed: Stage())
        status = command.main(["--minutes", "1", "--seed", "5", "--report", str(tmp_path)])
        assert status == (0 if isinstance(error, KeyboardInterrupt) else 1)
        text = (tmp_path / "soak.md").read_text()
        assert "2 rounds" in text
        assert said in text
        assert (tmp_path / report.DRAWING).exists()
