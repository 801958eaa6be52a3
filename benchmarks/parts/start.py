"""To the agent's answer, restored and booted; and `ctr run --rm` of `true` as a whole."""

from __future__ import annotations

from functools import partial

from benchmarks.bare import answered, bare_seconds, default_plan, template_of
from benchmarks.figures import alternate
from benchmarks.stage import Stage


def measure(stage: Stage) -> None:
    plan = default_plan(stage.directory)
    warm, cold = stage.directory / "warm.toml", stage.directory / "cold.toml"
    warm.touch()
    cold.write_text("[factory]\nenable_template = false\n")
    answered(warm)  # makes the template
    with template_of(plan) as saved:
        stage.record(
            "restore to the agent's answer",
            "s",
            alternate(stage.runs, {"kata": lambda: answered(warm), "bare qemu": lambda: bare_seconds(plan, saved)}),
        )
    stage.record(
        "cold boot to the agent's answer",
        "s",
        alternate(stage.runs, {"kata": lambda: answered(cold), "bare qemu": lambda: bare_seconds(plan)}),
    )
    actions = {name: partial(stage.run_true, options) for name, options in stage.contenders.items()}
    if "kata" in stage.contenders:
        options = (*stage.contenders["kata"], "--runtime-config-path", str(cold))
        actions["kata, cold boot"] = partial(stage.run_true, options)
    stage.record("ctr run --rm", "s", alternate(stage.runs, actions))
