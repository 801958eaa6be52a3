"""Limits that PID 1 raises: the documents name each, and one that the kernel refuses does not keep the others."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from kata.agent import limits

TABLE = (Path(__file__).parents[3] / "docs/guide/resources.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in limits.SYSCTLS if not name.startswith("user.")])
def test_the_table_of_the_documents_has_it(name: str) -> None:
    assert f"| `{name}` | {limits.SYSCTLS[name]} |" in TABLE


def test_what_the_kernel_refuses_is_told_and_the_rest_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    monkeypatch.setattr(limits, "SYSCTLS", {"kernel.nonsense-max": 1})
    monkeypatch.setattr(limits, "RLIMITS", {resource.RLIMIT_NOFILE: (2, 1), resource.RLIMIT_CORE: (0, hard)})
    try:
        refused = limits.raise_limits()
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert [line.partition(":")[0] for line in refused] == [
        "kernel.nonsense-max",
        f"resource limit {resource.RLIMIT_NOFILE}",
    ]
