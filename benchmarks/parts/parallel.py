"""Many containers, started together."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.figures import turns
from benchmarks.stage import Stage
from kata.errors import Internal, KataError

_COUNTS = (1, 5, 10, 20)
#: A round of twenty takes long, and varies little because it has many starts.
_MAX_ROUNDS = 2


def measure(stage: Stage) -> None:
    problems: list[str] = []
    for count in _COUNTS:
        if count > stage.sandboxes:
            break
        seconds: dict[str, list[float]] = {name: [] for name in stage.contenders}
        failed: dict[str, list[float]] = {name: [] for name in stage.contenders}
        for _, name in turns(min(stage.runs, _MAX_ROUNDS), stage.contenders):
            took, said = _round(stage, stage.contenders[name], count)
            seconds[name].append(took)
            failed[name].append(len(said))
            problems += [f"{name}, {count} at a time: {one}" for one in said]
        stage.record("all ended", "s", _tuples(seconds), count)
        stage.record("failed", "failed", _tuples(failed), count)
    if problems:
        raise Internal(f"{len(problems)} containers failed; the first: {problems[0]}")


def _round(stage: Stage, options: tuple[str, ...], count: int) -> tuple[float, list[str]]:
    """Return the seconds until all have ended, and the messages of those that failed."""

    def one(_: int) -> str:
        try:
            stage.run_true(options)
        except KataError as error:
            return error.message
        return ""

    with ThreadPoolExecutor(count) as pool:
        begin = time.perf_counter()
        said = list(pool.map(one, range(count)))
        return time.perf_counter() - begin, [message for message in said if message]


def _tuples(measured: dict[str, list[float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(values) for name, values in measured.items()}
