"""Sandbox, container of one, or neither: by the keys of each manager."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kata.errors import InvalidArgument
from kata.oci.annotations import ContainerType, classify

_CRI = ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id", "sandbox")
_CRIO = ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID", "sandbox")
_DOCKERSHIM = ("io.kubernetes.docker.type", "io.kubernetes.sandbox.id", "podsandbox")
managers = pytest.mark.parametrize(("kind", "sandbox", "word"), [_CRI, _CRIO, _DOCKERSHIM])


@managers
def test_sandbox(kind: str, sandbox: str, word: str) -> None:
    assert classify({kind: word, sandbox: "me"}, "me") == (ContainerType.SANDBOX, "me")


@managers
def test_container_of_a_pod(kind: str, sandbox: str, word: str) -> None:
    assert classify({kind: "container", sandbox: "pod"}, "me") == (ContainerType.CONTAINER, "pod")


@managers
def test_container_without_a_sandbox_is_refused(kind: str, sandbox: str, word: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{sandbox} is missing"):
        classify({kind: "container"}, "me")


@managers
def test_sandbox_id_that_leads_elsewhere_is_refused(kind: str, sandbox: str, word: str) -> None:
    with pytest.raises(InvalidArgument, match=sandbox):
        classify({kind: "container", sandbox: "../other"}, "me")


@managers
def test_unknown_type_is_refused(kind: str, sandbox: str, word: str) -> None:
    with pytest.raises(InvalidArgument, match="neither"):
        classify({kind: "init"}, "me")


@pytest.mark.parametrize("annotations", [{}, {"io.kubernetes.cri.sandbox-id": "pod"}, {"a": "container"}])
def test_single(annotations: dict[str, str]) -> None:
    assert classify(annotations, "me") == (ContainerType.SINGLE, "me")


def test_import_is_light() -> None:
    """The shim's `start` is on the critical path of every container."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules); import kata.oci.annotations; "
        "print(*sorted(set(sys.modules) - before))"
    )
    source_root = sys.modules["kata.oci.annotations"].__file__
    assert source_root is not None
    run = [sys.executable, "-IS", "-c", program, source_root.removesuffix("/kata/oci/annotations.py")]
    done = subprocess.run(run, check=True, capture_output=True, text=True, timeout=60)
    foreign = [name for name in done.stdout.split() if not name.startswith("kata")]
    assert foreign in ([], ["__future__"])
