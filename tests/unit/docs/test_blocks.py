"""Each block of commands says in which setting a test runs it, or why none does."""

from __future__ import annotations

import pytest

from tests.support.documents import NOT_RUN, SETTINGS, Block, all_blocks, blocks

BLOCKS = all_blocks()


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in BLOCKS])
def test_a_block_is_run_or_says_why_not(block: Block) -> None:
    setting, reason = block.setting, block.attributes.get("not-run")
    assert (setting in SETTINGS) != (reason in NOT_RUN)
    assert set(block.attributes) <= {"setting", "not-run", "long", "follows"}
    assert setting or len(block.attributes) == 1


def test_no_setting_and_no_reason_is_forgotten() -> None:
    assert {block.setting for block in BLOCKS} == {None, *SETTINGS}
    assert {block.attributes["not-run"] for block in BLOCKS if not block.setting} == set(NOT_RUN)


def test_more_is_run_than_not() -> None:
    """Which would not hold any more if a new reason were the easy way out. What tries a release runs elsewhere."""
    here = [block for block in BLOCKS if block.attributes.get("not-run") != "release"]
    commands = [sum(bool(line.strip()) for line in block.text.splitlines()) for block in here]
    run = sum(count for count, block in zip(commands, here, strict=True) if block.setting)
    assert run > sum(commands) / 2


def test_how_blocks_are_read() -> None:
    text = "# A\n\n```sh {setting=sandbox follows}\nkata top   # live\n```\n\n```toml\na = 1\n```\n\n```sh\nls\n```\n"
    follows, plain = blocks(text, "a.md")
    assert (follows.name, follows.setting) == ("a.md:3", "sandbox")
    assert follows.script == "timeout --foreground --signal=INT 3 kata top || [ $? = 124 ]\n"
    assert (plain.name, plain.attributes, plain.script) == ("a.md:11", {}, "ls\n")
