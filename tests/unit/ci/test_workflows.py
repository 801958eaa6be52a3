"""What contributors' CI runs is what `.ci/run` runs, and GitHub would take the files. GitHub itself cannot run here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kata.osbuilder import suite
from tests.support.evidence import FAILURES

ROOT = Path(__file__).parents[3]
WORKFLOW = ROOT / ".github/workflows/ci.yml"
#: By the matrix, each release has a job of its own.
BY_MATRIX = "test-hosts"


def jobs() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
    return found


def stages(job: dict[str, Any]) -> list[str]:
    """The targets that a job makes, with the values of its matrix."""
    text = " ".join(step.get("run", "") for step in job["steps"])
    for name, values in job["strategy"]["matrix"].items():
        text = text.replace(f"make ${{{{ matrix.{name} }}}}", " ".join(f"make {value}" for value in values))
    return re.findall(r"(?<!install )\bmake ([a-z-]+)", text)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("github-workflows", ".github/workflows/ci.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/bug.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/feature.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
    ],
)
def test_schemas(schema: str, path: str) -> None:
    checked = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(ROOT / path)]
    done = subprocess.run(checked, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_stages_are_ours() -> None:
    always, _, nightly = (ROOT / ".ci/run").read_text(encoding="utf-8").partition("NIGHTLY:-")
    every, night = (re.findall(r"^\s*stage ([a-z-]+)$", text, re.MULTILINE) for text in (always, nightly))
    assert BY_MATRIX in every
    assert stages(jobs()["test"]) == [stage for stage in every if stage != BY_MATRIX]
    assert stages(jobs()["nightly"]) == ["run", *night]


def test_what_failed_tests_leave_can_be_had() -> None:
    for job in jobs().values():
        (upload,) = [step for step in job["steps"] if step.get("uses", "").startswith("actions/upload-artifact@")]
        assert upload["if"] == "failure()"
        assert ROOT / upload["with"]["path"] == FAILURES


def test_code_owners_own_what_is_there() -> None:
    lines = (ROOT / ".github/CODEOWNERS").read_text(encoding="utf-8").splitlines()
    rules = [line.split() for line in lines if line and not line.startswith("#")]
    assert rules[0][0] == "*", "who is asked if nothing else matches"
    for pattern, *owners in rules:
        assert owners
        assert pattern == "*" or (ROOT / pattern.lstrip("/")).exists(), pattern


def test_each_host_release_has_its_job() -> None:
    hosts = [release.number for release in suite.releases() if release.host]
    assert [job["strategy"]["matrix"]["debian"] for job in jobs().values()] == [hosts, hosts]
